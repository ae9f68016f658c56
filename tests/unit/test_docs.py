"""What the documents say exists: links, commands with their options, make targets, modules, and the example experiment."""

import re
from pathlib import Path

import pytest
import typer.main
import yaml

from orchestrator.cli import VERBS, app
from orchestrator.experiment.model import parse_experiment

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in ("benchmarks", "deploy", "docs") for path in (ROOT / folder).rglob("*.md"))])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
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


def test_the_readme_names_every_verb_but_no_other() -> None:
    named = {verb for verb, _ in COMMAND.findall(code_of(ROOT / "README.md"))}
    assert named == set(VERBS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", code_of(document), re.MULTILINE)) <= targets


def test_the_tour_names_what_is_there() -> None:
    for row in re.findall(r"^\| (`.*?) \|", text_of(ROOT / "CONTRIBUTING.md"), re.MULTILINE):
        names = re.findall(r"`([^`]+)`", row)
        folder = ROOT / names[0]
        for name in names:
            assert (ROOT / name).exists() or (folder.parent / name).exists(), name


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


def test_the_functions_that_the_readme_promises_exist() -> None:
    from orchestrator import api

    promised = re.search(r"`orchestrator\.api` has\s(.*?) as functions", text_of(ROOT / "README.md"), re.DOTALL)
    assert promised is not None
    names = re.findall(r"`(\w+)`", promised.group(1))
    assert {"plan", "submit", "wait"} <= set(names)
    assert [name for name in names if not callable(getattr(api, name, None))] == []


def test_the_readme_explains_every_exit_code_of_a_command() -> None:
    from orchestrator import errors
    from orchestrator.cli import drill, output

    of_jobs_only = {errors.DivergedError.exit_code, errors.Superseded.exit_code}
    of_errors = {getattr(errors, name).exit_code for name in errors.__all__} - of_jobs_only
    of_verbs = {output.EXIT_RUN_FAILED, output.EXIT_RUN_STOPPED, output.EXIT_UNEXPECTED, output.EXIT_INTERRUPTED, drill.EXIT_LOST}
    table = re.findall(r"^\| (\d+) \|", text_of(ROOT / "README.md"), re.MULTILINE)
    assert sorted(map(int, table)) == sorted({0} | of_errors | of_verbs)


def test_every_benchmark_is_in_their_readme() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in text_of(path)}
    assert set(re.findall(r"^\| `python -m benchmarks\.(\w+)", text_of(ROOT / "benchmarks" / "README.md"), re.MULTILINE)) == scripts


def test_every_verb_that_the_readme_calls_scriptable_speaks_json() -> None:
    promised = re.search(r"`--json` on (.*?)\.", text_of(ROOT / "README.md"))
    assert promised is not None
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for verb in re.findall(r"`(\w+)`", promised.group(1)):
        assert any("--json" in parameter.opts for parameter in verbs[verb].params), verb


def test_kubernetes_takes_the_image_that_was_built() -> None:
    content = yaml.safe_load(text_of(ROOT / "deploy" / "raycluster.yaml"))["spec"]
    for group in (content["headGroupSpec"], *content["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        assert container["imagePullPolicy"] == "IfNotPresent"
        assert f"-t {container['image']} ." in text_of(ROOT / "deploy" / "README.md")
