"""Which nnfleet a job runs: version and commit, found where the job is submitted, since the shipped copy has neither."""

import os
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CODE_VARIABLE = "NNFLEET_CODE"
"""Environment variable of every job: `<version> <commit>`, with `-dirty` behind a commit whose files were changed; the commit may lack."""


def shipped_code() -> str:
    """What a job that is submitted from this process will run, as CODE_VARIABLE holds it."""
    return os.environ.get(CODE_VARIABLE) or f"{_version()} {_commit()}".strip()


def code_tags(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """MLflow tags of the code that runs in this process: nnfleet's version, and the commit where it came from a checkout."""
    number, _, commit = (environment.get(CODE_VARIABLE) or shipped_code()).partition(" ")
    return {"nnfleet.version.nnfleet": number} | ({"mlflow.source.git.commit": commit} if commit else {})


def _version() -> str:
    try:
        return version("nnfleet")
    except PackageNotFoundError:
        return "unknown"


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "orchestrator", "trainers")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}-dirty" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
