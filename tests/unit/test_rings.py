"""The runner of the rings of tests: real pytest processes of small files."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import rings
from tests.ring_record import Record
from tests.rings import REPOSITORY, Ended, files, may_have_tests, run, summary

PASSES = "def test_passes():\n    pass\n"
DIES = "import os, signal\ndef test_lives():\n    pass\ndef test_dies():\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
HANGS = """import subprocess, sys, time
def test_hangs():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", __file__], start_new_session=True)
    time.sleep(600)
"""
LOGS = """import os, pathlib
logs = pathlib.Path(os.environ['NNFLEET_RING_FOLDER']) / 'nnf' / 'session_2026' / 'logs'
logs.mkdir(parents=True)
(logs / 'raylet.out').write_text('no room')
print(logs)
"""
MIXED = """import pytest
def test_passes():
    pass
def test_fails():
    assert 1 == 2
@pytest.mark.skip
def test_is_skipped():
    pass
def test_skips_itself():
    pytest.skip("not here")
@pytest.fixture
def broken():
    yield
    raise ValueError("teardown")
def test_is_broken_afterwards(broken):
    pass
@pytest.mark.long
def test_takes_long():
    pass
"""


def written(folder: Path, **contents: str) -> list[Path]:
    """Test files in their order."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = long\n")
    made = [folder / f"test_{name}.py" for name in contents]
    for path, content in zip(made, contents.values(), strict=True):
        path.write_text(content)
    return made


def started(folder: Path) -> list[int]:
    """Processes whose command names a file in the folder."""
    return [process.pid for process in psutil.process_iter(["cmdline"]) if f"{folder}/" in " ".join(process.info["cmdline"] or [])]


def test_a_file_that_dies_is_one_named_failure_and_the_next_one_runs(tmp_path: Path) -> None:
    over = run(written(tmp_path, dies=DIES, passes=PASSES), [], at_once=1)
    assert [(ended.failures, ended.record.names("passed")) for ended in over] == [
        (["CRASHED test_dies.py::test_dies: died by SIGSEGV"], ["test_dies.py::test_lives"]),
        ([], ["test_passes.py::test_passes"]),
    ]
    assert "Fatal Python error: Segmentation fault" in over[0].output
    assert summary(over)[-1] == "2 passed, 1 failed"


def test_a_file_that_hangs_is_ended_at_its_limit_with_all_that_it_started(tmp_path: Path) -> None:
    (ended,) = run(written(tmp_path, hangs=HANGS), [], limit_s=10)
    assert ended.failures == ["CRASHED test_hangs.py::test_hangs: ended at its limit of 10 s"]
    assert "in test_hangs" in ended.output  # the stack
    assert started(tmp_path) == []


def test_the_ends_of_rays_logs_are_shown_and_its_folder_goes(tmp_path: Path) -> None:
    (ended,) = run(written(tmp_path, logs=LOGS + DIES), ["-s"])
    assert "--- the end of Ray's raylet.out\nno room" in ended.output
    folder = next(Path(line).parents[2] for line in ended.output.splitlines() if line.endswith("session_2026/logs"))
    assert not folder.exists()


def test_tests_are_counted_once_by_the_worst_of_their_phases(tmp_path: Path) -> None:
    over = run(written(tmp_path, mixed=MIXED, broken="import no_such_module\n"), ["-m", "not long"])
    assert sorted(failure for ended in over for failure in ended.failures) == [
        "FAILED test_broken.py",
        "FAILED test_mixed.py::test_fails",
        "FAILED test_mixed.py::test_is_broken_afterwards",
    ]
    assert summary(over)[-1] == "1 passed, 3 failed, 2 skipped"


def test_a_worker_of_the_unit_ring_that_dies_ends_it_with_a_name(tmp_path: Path) -> None:
    folder = written(tmp_path, dies=DIES, passes=PASSES)[0].parent
    (ended,) = run([folder], ["-n", "2", "--dist", "loadfile", "--max-worker-restart=0"], limit_s=60)
    assert "FAILED test_dies.py::test_dies" in ended.failures
    assert not ended.death


def test_the_status_says_whether_something_passed_and_nothing_failed(tmp_path: Path) -> None:
    passes, dies = written(tmp_path, passes=PASSES, dies=DIES)
    assert rings.main([str(passes)]) == 0
    assert rings.main([str(passes), str(dies)]) == 1
    assert rings.main([str(passes), "-k", "nothing"]) == 1


def test_a_status_that_no_test_explains_is_a_failure() -> None:
    assert rings._death(1, Record()) == "ended with status 1"
    assert rings._death(0, Record(unfinished=["a"])) == "ended with status 0"
    assert rings._death(1, Record({"a": "failed"})) == rings._death(5, Record()) == ""
    assert Ended("f", 1.0, Record({"a": "passed"}), "died by SIGSEGV").failures == ["CRASHED f (outside its tests): died by SIGSEGV"]


def test_an_interrupt_ends_what_was_started(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.rings", str(written(tmp_path, hangs=HANGS)[0])]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as runner:
        deadline = time.monotonic() + 60
        while len(started(tmp_path)) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        runner.send_signal(signal.SIGINT)
        assert runner.communicate(timeout=60)[0] == "Interrupted: test_hangs.py::test_hangs\n"
        assert runner.returncode == 130
    assert started(tmp_path) == []


def test_long_files_start_first(tmp_path: Path) -> None:
    a, training = written(tmp_path, a=PASSES, training=PASSES)
    assert files([tmp_path]) == [training, a]
    assert set(rings.LONGEST) <= {path.stem for path in rings.INTEGRATION.glob("test_*.py")}


def test_a_file_without_a_test_of_the_ring_is_not_started(tmp_path: Path) -> None:
    whole = "import pytest\npytestmark = [\n    pytest.mark.timeout(9),\n    pytest.mark.long,\n]\ndef test_a():\n    pass\n"
    part = "import pytest\n@pytest.mark.long\ndef test_a():\n    pass\ndef test_b():\n    pass\n"
    files_of = dict(zip(("whole", "part", "none"), written(tmp_path, whole=whole, part=part, none=PASSES), strict=True))
    chosen = {
        expression: [name for name, path in files_of.items() if may_have_tests(path, expression)] for expression in ("long", "not long", "")
    }
    assert chosen == {"long": ["whole", "part"], "not long": ["part", "none"], "": ["whole", "part", "none"]}
    real = {path.stem for path in rings.INTEGRATION.glob("test_*.py") if not may_have_tests(path, "not long")}
    assert real == {
        "test_accelerator_types",
        "test_autoscaler",
        "test_cascade_campaign",
        "test_chaos",
        "test_drill",
        "test_elastic",
        "test_gangs",
        "test_halving",
        "test_hosts",
        "test_loaders_anywhere",
        "test_mlflow_pages",
        "test_orphans",
        "test_own_parts",
        "test_own_trainer",
        "test_preprocessing",
        "test_raw_campaign",
        "test_resume",
    }


def test_the_unit_ring_runs_again_when_anything_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    unit = repository / "tests" / "unit"
    unit.mkdir(parents=True)
    (test,) = written(unit, a=PASSES)
    (repository / "code.py").write_text("a = 1")
    monkeypatch.setattr(rings, "REPOSITORY", repository)
    monkeypatch.setattr(rings, "UNIT", unit)
    monkeypatch.setattr(rings, "run", lambda targets, arguments, limit_s: [Ended("unit", 0.0, Record({"a": "passed"}))])
    passed = tmp_path / "passed"

    def runs() -> int:
        return len(rings.run_unit([], 60, 1, passed))

    assert [runs(), runs()] == [1, 0]
    assert "not run again" in capsys.readouterr().out
    (repository / "code.py").write_text("a = 2")
    assert [runs(), runs()] == [1, 0]
    (repository / "code.py").rename(repository / "renamed.py")
    assert [runs(), runs()] == [1, 0]
    test.unlink()
    assert [runs(), runs()] == [1, 0]
    (repository / ".venv").mkdir()
    (repository / ".venv" / "cache").write_text("")
    assert runs() == 0
    assert len(rings.run_unit([], 60, 1, None)) == 1
