"""The two walls: the orchestrator knows no torch, the trainers know no cluster and no tracking; and `nnfleet --help` stays quick."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "nnunetv2", "monai", "mlflow", "ray", "dynamic_network_architectures", "batchgenerators", "batchgeneratorsv2")
CLUSTER_AND_TRACKING = ("ray", "mlflow", "orchestrator")
SPEAKS_RAY = {
    "campaign/control_job",
    "cluster/discovery",
    "cluster/list_nodes",
    "cluster/nodes",
    "drill/job",
    "training/driver",
    "training/failure_policy",
    "training/gang_backend",
    "training/gang_trainer",
    "training/loader_pool",
    "training/save_before_resize",
    "training/scaling_policy",
    "training/worker",
    "validation/held_out_job",
    "validation/case_worker",
    "validation/job",
    "validation/worker_pool",
}
TABLE = """
trainers.errors:
trainers.storage: trainers.errors
trainers.contract: trainers.errors trainers.storage
trainers.data: trainers.contract trainers.errors trainers.storage
trainers.network: trainers.contract trainers.data trainers.errors trainers.storage
trainers.training: trainers.contract trainers.data trainers.errors trainers.network trainers.storage
trainers.validation: trainers.contract trainers.data trainers.errors trainers.network trainers.storage
errors: trainers.errors
run: trainers.contract trainers.errors trainers.storage
dataset: errors trainers.contract trainers.data trainers.storage
queue: run trainers.contract trainers.errors trainers.storage
cluster: queue run trainers.contract trainers.errors trainers.storage
statistics:
tracking: cluster errors run trainers.contract trainers.errors
publishing: errors queue run tracking trainers.contract trainers.errors trainers.storage
export: errors publishing run tracking trainers.contract trainers.storage
imported: dataset errors publishing queue run trainers.contract trainers.data trainers.storage trainers.training trainers.validation
experiment: dataset errors queue run tracking trainers.contract trainers.storage
preprocessing: dataset errors experiment queue run trainers.contract trainers.storage
training: cluster dataset publishing queue run tracking trainers.contract trainers.data trainers.errors trainers.storage
    trainers.training
follow: queue run tracking trainers.contract trainers.errors trainers.storage
compare: errors export publishing run statistics tracking trainers.contract trainers.errors trainers.storage
report: compare publishing statistics tracking trainers.contract trainers.data trainers.storage
validation: cluster compare dataset errors export follow publishing queue run tracking trainers.contract trainers.errors
    trainers.storage trainers.validation
resume: cluster dataset follow publishing queue run tracking trainers.contract trainers.errors trainers.storage
campaign: cluster compare dataset errors experiment follow preprocessing publishing queue report resume run tracking validation
    trainers.contract trainers.errors trainers.storage
drill: campaign cluster errors experiment run tracking trainers.contract trainers.network trainers.storage
demo: errors queue trainers.storage
verbs: campaign cluster compare drill errors experiment export imported preprocessing publishing report resume run tracking
    trainers.contract validation
api: verbs
cli: api cluster compare demo errors experiment run statistics tracking trainers.contract
"""
EDGES = {wing: set(edges.split()) for wing, _, edges in (line.partition(":") for line in TABLE.replace("\n    ", " ").strip().split("\n"))}
"""Which wing imports which, lowest first; a wing of the orchestrator by its bare name. Each imports only wings that stand above it here."""
TRAINER_IMPORTS_NNUNET_TRAINER = "nnunetv2.training.nnUNetTrainer"


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path, *, module_level_only: bool = False) -> Iterator[str]:
    """Dotted names that a file imports; `from a import b` gives `a` and `a.b`. Blocks under TYPE_CHECKING do not run and do not count."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if module_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))


def place(path: Path) -> str:
    """`wing/module` of a file of the orchestrator."""
    return path.relative_to(ROOT / "orchestrator").with_suffix("").as_posix()


def wing_of(module: str) -> str:
    """The wing that a dotted module of ours lies in; empty for the packages themselves, whose code is shipped as a whole."""
    return ".".join(module.split(".")[:2]).removeprefix("orchestrator.") if "." in module else ""


def edges(path: Path) -> set[str]:
    """Wings that a file imports from, other than its own; `from orchestrator import api` names one too."""
    ours = {name for name in imports(path) if name.split(".")[0] in ("orchestrator", "trainers")}
    return {wing_of(name) for name in ours} - {wing_of(module_of(path)), ""}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def forbidden(names: Iterator[str], packages: tuple[str, ...]) -> set[str]:
    return {name for name in names if any(name == package or name.startswith(f"{package}.") for package in packages)}


@pytest.mark.parametrize("wing", EDGES)
def test_a_wing_imports_only_those_of_the_table(wing: str) -> None:
    own = [path for package in ("orchestrator", "trainers") for path in files(package) if wing_of(module_of(path)) == wing]
    assert own, "the table names a wing that does not exist"
    found = {edge for path in own for edge in edges(path)}
    assert found == EDGES[wing], "an edge is new, or is not needed any more"


def test_the_table_has_no_circle_and_lacks_no_wing() -> None:
    standing = list(EDGES)
    assert all(standing.index(edge) < standing.index(wing) for wing in EDGES for edge in EDGES[wing])
    there = {wing_of(module_of(path)) for package in ("orchestrator", "trainers") for path in files(package)}
    assert there - {"__init__", "trainers.__init__"} == set(EDGES)


@pytest.mark.parametrize("path", files("orchestrator"), ids=lambda path: str(path.relative_to(ROOT)))
def test_orchestrator_has_no_torch_at_module_level(path: Path) -> None:
    heavy_with_torch = ("torch", "nnunetv2", "monai", "dynamic_network_architectures", "batchgenerators", "batchgeneratorsv2")
    assert not forbidden(imports(path, module_level_only=True), heavy_with_torch)


@pytest.mark.parametrize("path", files("trainers"), ids=lambda path: str(path.relative_to(ROOT)))
def test_trainers_import_no_cluster_and_no_tracking(path: Path) -> None:
    assert not forbidden(imports(path), CLUSTER_AND_TRACKING)


@pytest.mark.parametrize("path", [*files("trainers/contract"), *files("trainers/storage")], ids=lambda path: path.stem)
def test_contract_and_storage_need_neither_torch_nor_the_rest_of_trainers(path: Path) -> None:
    assert not forbidden(imports(path), HEAVY)
    below = ("trainers.contract", "trainers.storage", "trainers.errors")
    assert not {name for name in forbidden(imports(path), ("trainers",)) if not name.startswith(below)}


def test_only_tracking_imports_mlflow() -> None:
    assert {place(path) for path in files("orchestrator") if forbidden(imports(path), ("mlflow",))} == {"tracking/client"}


def test_nothing_has_rays_client_of_the_job_server() -> None:
    clients = ("ray.job_submission", "ray.dashboard")
    assert not {place(path) for path in files("orchestrator") if forbidden(imports(path), clients)}


def test_only_entry_points_and_the_loader_pool_import_ray() -> None:
    assert {place(path) for path in files("orchestrator") if forbidden(imports(path), ("ray",))} <= SPEAKS_RAY


@pytest.mark.parametrize("module", [TRAINER_IMPORTS_NNUNET_TRAINER, "monai"])
def test_nobody_imports_what_only_tests_compare_with(module: str) -> None:
    found = {path.name for package in ("orchestrator", "trainers") for path in files(package) if forbidden(imports(path), (module,))}
    assert found == ({"own_trainer.py"} if module == TRAINER_IMPORTS_NNUNET_TRAINER else set()), "that one: for a subclass of a user's"


def loaded_by(statement: str, candidates: tuple[str, ...]) -> set[str]:
    """Which of the top-level `candidates` a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint(*[name for name in {candidates!r} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120).stdout
    return set(output.split("\n")[-2].split())


def test_the_command_line_starts_without_anything_heavy() -> None:
    assert loaded_by("import orchestrator.cli", (*HEAVY, "pydantic", "numpy", "yaml", "rich.progress")) == set()


@pytest.mark.parametrize("verb", ["--help", "train --help", "status --help", "demo --help"])
def test_help_loads_neither_ray_nor_torch_nor_mlflow(verb: str) -> None:
    statement = (
        f"sys.argv = ['nnfleet', *{verb.split()!r}]\n"
        "import orchestrator.cli\n"
        "try:\n    orchestrator.cli.main()\nexcept SystemExit as end:\n    assert end.code in (0, None), end.code"
    )
    assert loaded_by(statement, (*HEAVY, "numpy", "scipy")) == set()


def test_the_verbs_load_neither_ray_nor_mlflow_before_a_job_is_submitted() -> None:
    assert loaded_by("import orchestrator.api, orchestrator.cluster.jobs, orchestrator.resume.stored", (*HEAVY, "scipy", "numpy")) == set()


@pytest.mark.parametrize("module", ["experiment.model", "experiment.plan", "cluster.local_services", "demo"])
def test_planning_needs_no_torch_and_no_ray(module: str) -> None:
    assert loaded_by(f"import orchestrator.{module}", HEAVY) == set()


def test_the_statistics_of_comparisons_need_numbers_only() -> None:
    found = {name for path in files("orchestrator/statistics") for name in imports(path)}
    allowed = ("collections.abc", "dataclasses", "functools", "itertools", "math", "types", "typing", "numpy", "scipy")
    assert found == forbidden(iter(found), (*allowed, "orchestrator.statistics"))


def test_the_campaign_job_needs_no_torch() -> None:
    assert loaded_by("import orchestrator.campaign.job", ("torch", "nnunetv2", "monai")) == set()


def test_the_contract_loads_alone() -> None:
    names = ", ".join(f"trainers.contract.{path.stem}" for path in files("trainers/contract") if path.stem != "__init__")
    assert loaded_by(f"import {names}", (*HEAVY, "orchestrator", "scipy")) == set()


def test_a_worker_loads_neither_orchestrator_nor_mlflow() -> None:
    assert loaded_by("import trainers.training.loop", (*CLUSTER_AND_TRACKING, TRAINER_IMPORTS_NNUNET_TRAINER)) == set()


def test_a_worker_loads_nothing_that_prepares_samples() -> None:
    """Its loader actors do that: importing it in every worker would delay each start by a second."""
    preparing = ("trainers.data.samples", "trainers.data.recipes", "batchgeneratorsv2", "blosc2", "scipy.stats")
    assert loaded_by("import trainers.training.loop, orchestrator.training.worker, orchestrator.training.loader_pool", preparing) == set()


def test_a_loader_loads_the_morphology_of_a_cascade_for_a_cascade_alone() -> None:
    assert loaded_by("import trainers.data.recipes.default, trainers.data.recipes.da5", ("skimage.morphology", "nnunetv2")) == set()


def test_ray_trains_driver_and_controller_need_no_torch() -> None:
    statement = "import orchestrator.training.gang_trainer, orchestrator.training.gang_backend, orchestrator.training.worker"
    assert loaded_by(statement, ("torch", "mlflow")) == set()
