"""Words that are ours alone, each with the one that the field has for it, and where users read texts: documents and the code's strings.

`python -m tests.field_words` lists what it finds, by file.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in ("benchmarks", "deploy", "docs") for path in (ROOT / folder).rglob("*.md"))])
COMMENTED = [ROOT / "cluster.yaml", *sorted((ROOT / "deploy").glob("*.yaml"))]
SCHEMA = ROOT / "docs" / "experiment.schema.json"
FIELD_WORDS = {
    r"signs? of life": "heartbeat",
    r"wish(?:es|ed)?": "request",
    r"board": "registry",
    r"notes? of": "entry",
    r"room": "capacity, resources, space",
    r"claim(?:s|ed)?": "acquire, get or create",
    r"attempts?": "fencing token, job number, tries",
    r"displaced": "reassigned",
    r"tak(?:e|es|en|ing) over|took over": "superseded, adopted",
    r"g(?:ive|ives|iven|ave) way": "superseded",
    r"foreign workers?": "orphan workers",
    r"strangers?": "unknown owner",
    r"sick": "unhealthy",
    r"pardon(?:s|ed)?": "reinstate",
    r"sets? aside": "quarantine",
    r"in vain": "without progress",
    r"(?<!was )(?<!be )lost(?=:)": "orphaned",
    r"g(?:ive|ives|iven|ave) up": "retries exhausted, times out",
    r"sweep(?:s|ing)?(?![:`])": "reconcile",
    r"look(?:s|ed|ing)? after": "refresh",
    r"look(?:s|ed|ing)? at": "check, read, poll",
    r"tak(?:e|es|en|ing) up|took up": "resume, continue",
    r"patiently": "retry",
    r"h(?:old|olds|eld) up": "delay",
    r"puts? up with": "tolerate, retry",
    r"went well": "recovered",
    r"midway": "mid-epoch",
    r"standing": "progress",
    r"t(?:old|ells?|elling)": "report, publish",
    r"sa(?:y|ys|id|ying)": "report, state, print",
    r"(?:is|are|was|were|be|been) away": "unavailable",
    r"its turn": "queued",
    r"for want of": "for lack of",
    r"mend(?:s|ed)?": "fix, repair",
    r"passed over": "skipped",
    r"without a word": "without an outcome",
    r"end of (?:its|their) own": "finished, failed or was stopped",
    r"whoever": "the one that, a reader that",
}
"""Whole words, in any case -> what to write instead."""
FOUND = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in FIELD_WORDS), re.IGNORECASE)


def found_in(text: str) -> list[str]:
    """Our own words in a text, with what stands around them."""
    line = " ".join(text.split())
    return [f"{hit[0]!r} in: {line[max(0, hit.start() - 40) : hit.end() + 40]}" for hit in FOUND.finditer(line)]


def prose_of(document: Path) -> str:
    """A document without its inline code, which holds names of files and of identifiers; comments in code blocks are prose."""
    text = document.read_text(encoding="utf-8")
    if document in COMMENTED:
        return "\n".join(re.findall(r"#.*", text))
    return re.sub(r"(?<!`)`[^`\n]+`(?!`)", "", text)


def descriptions(node: object) -> Iterator[str]:
    """Every description of a JSON schema."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and isinstance(node.get("description"), str):
        yield node["description"]
    for child in children:
        yield from descriptions(child)


def found_in_documents() -> dict[str, list[str]]:
    """What the documents hold of our own words, by file."""
    texts = {path: prose_of(path) for path in (*DOCUMENTS, *COMMENTED)} | {
        SCHEMA: "\n".join(descriptions(json.loads(SCHEMA.read_text(encoding="utf-8"))))
    }
    return _by_file({path: [text] for path, text in texts.items()})


def found_in_code() -> dict[str, list[str]]:
    """What the texts of both packages that a user may read hold of our own words, by file."""
    return _by_file({path: list(texts_of(path)) for package in ("orchestrator", "trainers") for path in (ROOT / package).rglob("*.py")})


def texts_of(path: Path) -> Iterator[str]:
    """The strings of a module that are sentences: of errors, logs, reasons and helps, wherever they are put together. Of its docstrings
    those of the command line's verbs, which `--help` shows."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef) and path.parent.name == "cli" and node.name == path.stem:
            yield ast.get_docstring(node) or ""
        text = _text(node)
        if text is None or isinstance(node, ast.JoinedStr):
            pending.extend(child for child in ast.iter_child_nodes(node) if text is None or isinstance(child, ast.FormattedValue))
        if text is not None and id(node) not in silent and " " in text.strip():
            yield text


def _text(node: ast.AST) -> str | None:
    """A string literal; of an f-string with `{}` for what is filled in. None for everything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _by_file(texts: dict[Path, list[str]]) -> dict[str, list[str]]:
    found = {str(path.relative_to(ROOT)): [hit for text in texts[path] for hit in found_in(text)] for path in sorted(texts)}
    return {path: hits for path, hits in found.items() if hits}


def main() -> int:
    """List our own words, by file."""
    found = found_in_documents() | found_in_code()
    for path, hits in found.items():
        print(f"{path}: {len(hits)}", *hits, sep="\n  ")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
