"""Everything works with no route out: an experiment from submit to its full validation in a network namespace that has only loopback."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Toys
from tests.integration.cluster import SHORT

REPOSITORY = Path(__file__).parents[2]
ISOLATE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""A network of its own, and processes of its own that all end with the test."""
SCRIPT = """
set -euo pipefail
ip link set lo up
routes=$(tail -n +2 /proc/net/route | wc -l)
test "$routes" = 0
"$PYTHON" -m orchestrator.cli submit experiment.yaml --json > submitted.json
"$PYTHON" -m orchestrator.cli status --watch
"$PYTHON" -m orchestrator.cli status --json > status.json
"$PYTHON" -m orchestrator.cli export "$RUN" exported
"$PYTHON" -m orchestrator.cli down
"""


def why_not() -> str | None:
    """The reason why this machine cannot make such a namespace, or None."""
    if os.geteuid() != 0:
        return "a network namespace needs root"
    missing = [tool for tool in ("unshare", "ip") if shutil.which(tool) is None]
    if missing:
        return f"needs {' and '.join(missing)}"
    tried = subprocess.run([*ISOLATE, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    return f"this system allows no namespaces: {tried.stderr.strip()}" if tried.returncode else None


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="nnf", dir=SHORT))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def ends_of_logs(home: Path) -> str:
    """The last lines of the services' logs."""
    return "\n".join(f"{path}:\n{path.read_text(errors='replace')[-1500:]}" for path in sorted((home / "logs").glob("*.log")))


@pytest.mark.timeout(900)
def test_an_experiment_runs_where_there_is_no_route_out(toys: Toys, tmp_path: Path, home: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    toy = toys()
    results = tmp_path / "results"
    experiment: dict[str, Any] = {
        "dataset": toy.name,
        "nnUNet_preprocessed": str(toy.preprocessed.parent),
        "nnUNet_results": str(results),
        "configurations": ["toy_3d"],
        "folds": [0],
        "epochs": 2,
        "train_iterations": 3,
        "val_iterations": 2,
        "workers": {"count": 1, "gpus": 0, "cpus": 1},
        "images": True,
        "validation": {"checkpoints": ["best"]},
    }
    (tmp_path / "experiment.yaml").write_text(json.dumps(experiment), encoding="utf-8")  # JSON is YAML
    address = f"{int(toy.name[7:10])}/toy_3d/nnUNetTrainer/0"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))},
        "NNFLEET_HOME": str(home),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHON": sys.executable,
        "RUN": address,
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        [*ISOLATE, "bash", "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=840
    )
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}\n{ends_of_logs(home)}"
    (run,) = json.loads((tmp_path / "status.json").read_text())
    assert run["state"] == "SUCCEEDED"
    assert set(run["full_dice"]) == {"best"}
    assert (Path(run["run_folder"]) / "validation_best" / "summary.json").is_file()
    assert (tmp_path / "exported" / "fold_0" / "checkpoint_best.pth").is_file()
