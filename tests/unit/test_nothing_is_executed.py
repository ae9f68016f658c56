"""Nothing of any input is executed: what our code may not call, how commands are quoted, what is shipped."""

import errno
import os
import re
import shlex
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.code_package import code_files, packed
from orchestrator.report import page
from orchestrator.report.slice_viewer import SCRIPT

ROOT = Path(__file__).parents[2]


def test_nothing_of_ours_loads_a_pickle_that_may_run_code() -> None:
    forbidden = re.compile(
        r"weights_only=False|\bpickle\.loads?\(|\bload_pickle\(|allow_pickle=True|\byaml\.(unsafe_)?load\(\w+\)|shell=True|\bos\.system\(|(?<![.\w])(eval|exec)\("
    )
    found = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in ("orchestrator", "trainers", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if forbidden.search(line)
    }
    assert found == set()
    for path in (*(ROOT / "orchestrator").rglob("*.py"), *(ROOT / "trainers").rglob("*.py")):
        for call in re.findall(r"torch\.load\([^)]*\)", path.read_text(encoding="utf-8")):
            assert "weights_only=True" in call, path


def test_no_class_of_nnunet_that_unpickles_is_used() -> None:
    used = [
        path for package in ("orchestrator", "trainers") for path in (ROOT / package).rglob("*.py") if "nnUNetDataset" in path.read_text()
    ]
    files = {path.name: path.read_text() for path in used}
    assert set(files) == {"case_files.py", "next_stage.py"}  # the first in words, as the source of the format; the second only writes
    assert set(re.findall(r"nnUNetDataset\w+\.(\w+)", files["next_stage.py"])) == {"save_seg"}


@pytest.mark.parametrize("text", ["a b", "'; touch x; '", '"$(id)"', "`id`", "a\nb", "--now", "*", "\\", "é￥", "", "a'b\"c"])
def test_an_entry_point_gives_every_argument_to_python_as_it_is(text: str) -> None:
    """Ray runs entry points by a shell; `orchestrator/cluster/jobs.py` joins them with shlex."""
    command = shlex.join([sys.executable, "-c", "import sys; sys.stdout.write(sys.argv[1])", text])
    told = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, env={"PATH": "/bin", "PYTHONUTF8": "1"})
    assert told.stdout == text


def test_a_folder_of_code_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "module.py").write_text("x")
    listed = os.scandir

    def refuse(place: Any) -> Any:
        if Path(place).name == "sub":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(place))
        return listed(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OSError, match="Stale file handle"):
        list(code_files(tmp_path))


def test_the_code_package_holds_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import orchestrator
    import trainers

    for package in (orchestrator, trainers):
        place = tmp_path / package.__name__
        (place / "sub").mkdir(parents=True)
        for name in (
            ".env",
            "token",
            "id_rsa",
            "secrets.json",
            "key.pem",
            "model.pth",
            "module.py",
            "sub/other.py",
            "sub/.netrc",
            "py.typed",
        ):
            (place / name).write_text("x")
        (place / "linked.py").symlink_to(place / "id_rsa")
        monkeypatch.setattr(package, "__path__", [str(place)])
        (place / ".hidden").mkdir()
        (place / ".hidden" / "module.py").write_text("x")
    content = packed({"experiment.yaml": "dataset: 1"})
    assert packed({"experiment.yaml": "dataset: 1"}) == content, "the cluster stores it once"
    with zipfile.ZipFile(BytesIO(content)) as unpacked:
        assert unpacked.read("experiment.yaml") == b"dataset: 1"
        names = sorted(unpacked.namelist())
    assert names == [
        "experiment.yaml",
        *(f"{name}/{file}" for name in ("orchestrator", "trainers") for file in ("module.py", "py.typed", "sub/other.py")),
    ]


def test_the_code_package_brings_what_the_report_of_a_comparison_is_made_of() -> None:
    with zipfile.ZipFile(BytesIO(packed({}))) as unpacked:
        assert {f"orchestrator/report/{page.TEMPLATE.name}", f"orchestrator/report/{SCRIPT.name}"} <= {*unpacked.namelist()}
