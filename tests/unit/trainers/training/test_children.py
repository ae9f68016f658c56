"""What a training forks ends with it, however it ends."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

PROGRAM = f"""
import multiprocessing, os, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parents[4])!r})
from trainers.training.children import children_bound

def forked():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
    child.start()
    return child.pid

with children_bound():
    inside = forked()
print(inside, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's prctl")
def test_a_child_of_a_process_that_is_killed_is_killed_too() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    child = int(ended.stdout)
    try:
        psutil.Process(child).wait(10)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        psutil.Process(child).kill()
        raise
