"""Functions of the user's in the place of nnU-Net's network, loss or augmentation, and trainers of the user's: where their files lie, how
they are called.

The files of each lie in a folder named by their digest beside our own packages, as the code package of a job brings them; run.json only
names them. So whoever may write a run folder can execute nothing. docs/trainers.md is the protocol for users.
"""

import hashlib
import importlib
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainers.contract.run_spec import OwnCode, OwnPart, OwnParts
from trainers.errors import ConfigError

OWN_CODE = "own_code"
"""Folder of the code package, beside our own packages."""
ARGUMENTS: dict[OwnPart, tuple[str, ...]] = {
    "network": ("configuration", "input_channels", "output_channels", "deep_supervision"),
    "loss": ("labels", "configuration"),
    "recipe": ("inputs",),
}
"""By which keywords each function is called; a trainer is a class and is made as nnU-Net makes it."""


def digest_of(files: Mapping[str, str]) -> str:
    """SHA-256 of the names and contents of a function's files, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, text in sorted(files.items()):
        content = text.encode()
        digest.update(f"{name}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


def place_of(root: Path, sha256: str) -> Path:
    """Where the files of a digest lie below `root`."""
    return root / OWN_CODE / sha256[:16]


def code_root() -> Path:
    """What holds our own packages in this process."""
    return Path(__file__).resolve().parents[2]


def stored_files(folder: Path) -> dict[str, str]:
    """Name -> text of the files of a function; empty where there is no such folder."""
    found = sorted(path for path in folder.rglob("*.py") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes().decode() for path in found}


def check_files(own: OwnParts, *, predicts: bool = False) -> None:
    """Raise ConfigError unless the files of all functions of a run are here and hold what it was planned with. Executes nothing.

    `predicts`: a prediction needs what builds the network alone.
    """
    for part, code in own.named.items():
        if part in ("network", "trainer") or not predicts:
            _checked_folder(part, code)


def own_function(part: OwnPart, code: OwnCode) -> Callable[..., Any]:
    """The function, imported from its files. Raises ConfigError, with its own line, where these cannot be imported or lack it."""
    folder = _checked_folder(part, code)
    module, _, function = code.name.partition(":")
    root = f"nnfleet_own_{code.sha256[:16]}"  # two versions of one file may serve one process
    if root not in sys.modules:
        package = types.ModuleType(root)
        package.__path__ = [str(folder)]
        sys.modules[root] = package
    try:
        found = getattr(importlib.import_module(f"{root}.{module}"), function, None)
    except Exception as err:
        hint = ""
        if isinstance(err, ImportError):
            hint = " What it imports must be installed on every node; files of its own go into one package and are imported with `from .`."
        raise ConfigError(f"{part}: {code.name} cannot be imported: {fault_text(err, code)}.{hint}") from err
    if not callable(found):
        kind = "class" if part == "trainer" else "function"
        raise ConfigError(f"{part}: {module} has no {kind} {function!r}. Name one as `module:{kind}`.")
    own: Callable[..., Any] = found
    return own


def call_own(part: OwnPart, code: OwnCode, **arguments: Any) -> Any:
    """What the function returns. Raises ConfigError, with its own line, where it raises anything."""
    function = own_function(part, code)
    assert tuple(arguments) == ARGUMENTS[part]
    try:
        return function(**arguments)
    except Exception as err:
        raise ConfigError(f"{part}: {code.name} failed: {fault_text(err, code)}.{_signature(part)}") from err


def fault_text(error: Exception, code: OwnCode) -> str:
    """An error and the last line of the user's files that it went through."""
    folder = place_of(code_root(), code.sha256)
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if str(frame.filename).startswith(str(folder))]
    where = f" (line {lines[-1].lineno} of {Path(lines[-1].filename).relative_to(folder)})" if lines else ""
    return f"{type(error).__name__}: {str(error)[:500]}{where}"


def _signature(part: OwnPart) -> str:
    return f" It is called as {part}({', '.join(f'{name}=...' for name in ARGUMENTS[part])})."


def _checked_folder(part: OwnPart, code: OwnCode) -> Path:
    folder = place_of(code_root(), code.sha256)
    if digest_of(stored_files(folder)) != code.sha256:
        raise ConfigError(
            f"{part}: the files of {code.text} are not in the code package of this job: it was sent from a place that does not keep them. "
            "Submit the experiment again from where they lie; the same files continue the same run."
        )
    return folder
