"""Code and module names that stand in strings (programs for other processes, entry points, what a test replaces) name what exists."""

import ast
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = r"(?:orchestrator|trainers|tests|benchmarks)"
IMPORT = re.compile(rf"from ({OURS}[\w.]*) import (\w+(?: as \w+)?(?:, \w+(?: as \w+)?)*)")
MODULE = re.compile(rf"\bimport ({OURS}(?:\.\w+)*)(?=[\s,;]|$)")
NAME = re.compile(rf"{OURS}(?:\.[A-Za-z]\w*)+")
FILES = [path for folder in ("tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py")) if path != Path(__file__)]


def texts(tree: ast.AST) -> Iterator[str]:
    """Every string but the docstrings; what an f-string puts in is left out."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented)]
    told = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value


def named_in(text: str) -> Iterator[str]:
    """Dotted names of ours that a text imports, or is."""
    for module, names in IMPORT.findall(text):
        yield from (f"{module}.{name.split(' as ')[0]}" for name in names.split(", "))
    yield from MODULE.findall(text)
    if NAME.fullmatch(text) and not text.endswith((".py", ".yaml", ".json", ".md")):
        yield text


def exists(name: str) -> bool:
    """True for a module, or what is found in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_named_in_strings_exists(path: Path) -> None:
    named = {name for text in texts(ast.parse(path.read_text())) for name in named_in(text)}
    assert sorted(name for name in named if not exists(name)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import sys; from orchestrator.run import no_such_thing", ["orchestrator.run.no_such_thing"]),
        ("import orchestrator.cli\n", ["orchestrator.cli"]),
        ("orchestrator.training.driver", ["orchestrator.training.driver"]),
        ("of the orchestrator.", []),
    ],
)
def test_names_are_found_in_programs_and_alone(text: str, found: list[str]) -> None:
    assert list(named_in(text)) == found
