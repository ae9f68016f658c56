"""What the documents name exists: links, commands with their options, make targets, modules and functions, the example experiment.

And they agree with the code: the picture of the wings with the imports, the words with the field's.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main
import yaml

from orchestrator.cli import VERBS, app
from orchestrator.experiment.model import parse_experiment
from tests.field_words import DOCUMENTS, found_in, found_in_code, found_in_documents, texts_of
from tests.unit.test_imports import EDGES

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
NAMED_FILE = re.compile(r"`((?:orchestrator|trainers|tests|benchmarks|deploy|docs)/[\w/.-]*)`")
NAMED_DEFINITIONS = re.compile(r"`((?:orchestrator|trainers)/[\w/]+\.py)`:((?:[\s,]+`\w+`)+)")
ARROWS = re.compile(r"^ +(\w+(?: --> \w+)+)$", re.MULTILINE)
COMMAND = re.compile(r"(?:^|[`/ ])nnfleet ([a-z]+)((?: +[^`#\n]*)?)", re.MULTILINE)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_of(path: Path) -> str:
    """Code blocks and inline code of a document."""
    found = re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text_of(path), re.DOTALL)
    return "\n".join(block or inline for block, inline in found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(document: Path) -> None:
    targets = [target for target in LINK.findall(text_of(document)) if "://" not in target]
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_their_options_exist(document: Path) -> None:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for verb, rest in COMMAND.findall(code_of(document)):
        assert verb in VERBS, f"{document.name}: nnfleet {verb}"
        known = {option for parameter in verbs[verb].params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "-h"}
        used = set(re.findall(r"(?<!\S)(--?[a-z][\w-]*)", rest))
        assert used <= known, f"{document.name}: nnfleet {verb}: {used - known}"


def test_readme_and_docs_name_every_verb_but_no_other() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {verb for page in pages for verb, _ in COMMAND.findall(code_of(page))}
    assert named == set(VERBS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", code_of(document), re.MULTILINE)) <= targets


def tour() -> list[list[str]]:
    """The names in the first column of each row of CONTRIBUTING's table."""
    rows = re.findall(r"^\| (`.*?) \|", text_of(ROOT / "CONTRIBUTING.md"), re.MULTILINE)
    return [re.findall(r"`([^`]+)`", row) for row in rows]


def test_the_tour_names_what_is_there_and_every_wing() -> None:
    named = [name for row in tour() for name in row]
    assert [name for name in named if not (ROOT / name).exists()] == []
    wings = {name.removeprefix("orchestrator/").removesuffix(".py").strip("/").replace("/", ".") for name in named}
    assert set(EDGES) <= wings


def test_the_tour_stands_in_the_order_of_the_imports() -> None:
    order = [name.removeprefix("orchestrator/").removesuffix(".py").strip("/").replace("/", ".") for row in tour() for name in row]
    place = {wing: order.index(wing) for wing in EDGES}
    assert [(wing, edge) for wing in EDGES for edge in EDGES[wing] if place[edge] > place[wing]] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_and_definitions_exist(document: Path) -> None:
    text = text_of(document)
    assert [name for name in NAMED_FILE.findall(text) if not (ROOT / name).exists()] == []
    for name, listed in NAMED_DEFINITIONS.findall(text):
        assert [found for found in re.findall(r"`(\w+)`", listed) if found not in defined_in(ROOT / name)] == [], name


def defined_in(path: Path) -> set[str]:
    """Functions, classes and constants at the top level of a module."""
    body = ast.parse(text_of(path)).body
    targets = [target for node in body for target in (node.targets if isinstance(node, ast.Assign) else [])]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return defined | {target.id for target in targets if isinstance(target, ast.Name)}


def test_the_picture_of_the_wings_agrees_with_the_imports() -> None:
    """The picture draws few arrows: what can be reached along them is what may be imported, directly or not."""
    picture = text_of(ROOT / "ARCHITECTURE.md").split("```mermaid")[1].split("```")[0]
    drawn: dict[str, set[str]] = {wing: set() for wing in EDGES}
    for chain in ARROWS.findall(picture):
        wings = [re.sub("^t_", "trainers.", wing) for wing in chain.split(" --> ")]
        for upper, lower in pairwise(wings):
            drawn[upper].add(lower)
    assert {wing: reached(wing, drawn) for wing in EDGES} == {wing: reached(wing, EDGES) for wing in EDGES}


def reached(wing: str, edges: Mapping[str, set[str]]) -> set[str]:
    """Wings below `wing`, over any number of edges."""
    return edges[wing].union(*(reached(below, edges) for below in edges[wing]))


def test_documents_use_the_words_of_the_field() -> None:
    assert found_in_documents() == {}


def test_texts_of_the_code_use_the_words_of_the_field() -> None:
    assert found_in_code() == {}


def test_words_are_found_whole_in_any_form() -> None:
    assert len(found_in("lost: its Signs of\nlife are told, it gave up, is away.")) == 5
    assert found_in("The dashboard shows a consigned heartbeat; nothing was lost: the folder was moved away.") == []


def test_texts_are_found_wherever_they_are_put_together(tmp_path: Path) -> None:
    module = tmp_path / "cli" / "go.py"
    module.parent.mkdir()
    module.write_text(
        '"""Of the module."""\nWHY = "of a constant"\n\ndef go(n: int) -> str:\n    """Of the verb."""\n'
        '    key = "word"\n    return f"of run {n:>3} " f"and {key + \' or more\'}"\n\ndef other() -> None:\n    """Of no verb."""\n'
    )
    assert sorted(texts_of(module)) == [" or more", "Of the verb.", "of a constant", "of run {} and {}"]


def test_the_example_experiment_is_valid() -> None:
    example = re.search(r"```yaml\n(.*?)```", text_of(ROOT / "README.md"), re.DOTALL)
    assert example is not None
    experiment = parse_experiment(example.group(1))
    assert len(experiment.axes()) == 20  # as the README says


def test_the_kubernetes_file_is_yaml_with_the_right_ray_version() -> None:
    content = yaml.safe_load(text_of(ROOT / "deploy" / "raycluster.yaml"))
    assert content["kind"] == "RayCluster"
    pinned = re.search(r"^ray==(.*)$", text_of(ROOT / "constraints.txt"), re.MULTILINE)
    assert pinned is not None
    assert content["spec"]["rayVersion"] == pinned.group(1)
    assert [group["groupName"] for group in content["spec"]["workerGroupSpecs"]] == ["gpu", "cpu"]


def test_kubernetes_demands_the_token() -> None:
    content = yaml.safe_load(text_of(ROOT / "deploy" / "raycluster.yaml"))
    assert content["spec"]["authOptions"] == {"mode": "token"}


def test_constraints_are_exact_versions_from_nowhere_in_particular() -> None:
    lines = [line for line in text_of(ROOT / "constraints.txt").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
    assert len(lines) == len(set(lines))


def test_every_exit_code_of_a_command_is_explained() -> None:
    from orchestrator import errors
    from orchestrator.cli import drill, output

    of_jobs_only = {errors.DivergedError.exit_code, errors.Superseded.exit_code}
    of_errors = {getattr(errors, name).exit_code for name in errors.__all__} - of_jobs_only
    of_verbs = {code for name, code in vars(output).items() if name.startswith("EXIT_")} | {drill.EXIT_LOST}
    table = re.findall(r"^\| (\d+) \|", text_of(ROOT / "docs" / "operations.md"), re.MULTILINE)
    assert sorted(map(int, table)) == sorted({0} | of_errors | of_verbs)


def test_every_benchmark_is_in_their_readme() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in text_of(path)}
    assert set(re.findall(r"^\| `python -m benchmarks\.(\w+)", text_of(ROOT / "benchmarks" / "README.md"), re.MULTILINE)) == scripts


def test_every_verb_but_those_that_the_readme_names_speaks_json() -> None:
    excepted = re.search(r"`--json` on every verb but (.*?)\.", text_of(ROOT / "README.md"))
    assert excepted is not None
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    silent = {name for name, verb in verbs.items() if not any("--json" in parameter.opts for parameter in verb.params)}
    assert silent == set(re.findall(r"`(\w+)`", excepted.group(1)))


def test_kubernetes_takes_the_image_that_was_built() -> None:
    content = yaml.safe_load(text_of(ROOT / "deploy" / "raycluster.yaml"))["spec"]
    for group in (content["headGroupSpec"], *content["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        assert container["imagePullPolicy"] == "IfNotPresent"
        assert f"-t {container['image']} ." in text_of(ROOT / "deploy" / "README.md")


def test_the_site_has_every_document_and_no_link_that_leads_nowhere(tmp_path: Path) -> None:
    subprocess.run(["make", "-s", "-C", str(ROOT), "site-pages", f"SITE={tmp_path}"], check=True)
    told = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(tmp_path / "mkdocs.yml")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert told.returncode == 0, told.stdout + told.stderr
    named = set(re.findall(r": ([\w/]+\.md)$", text_of(ROOT / "docs" / "mkdocs.yml"), re.MULTILINE))
    assert named == {str(path.relative_to(ROOT)) for path in DOCUMENTS}
    assert len([*(tmp_path / "site").rglob("*.html")]) == len(named) + 1  # a page for what is not there
