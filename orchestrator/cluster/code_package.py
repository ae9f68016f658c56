"""What a Ray job gets as its working directory: the code of our own packages and nothing else that lies there, and files beside it."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import orchestrator
import trainers
from trainers.errors import StorageError
from trainers.storage.faults import free_space, storing
from trainers.storage.files import temporary_folder


@contextlib.contextmanager
def staged(files: Mapping[str, str]) -> Iterator[Path]:
    """A temporary folder with the packages as they are installed here, and `files` (name -> text). Under a megabyte.

    Raises StorageError where it finds no room.
    """
    with temporary_folder("nnfleet-code-") as folder:
        _fill(folder, files)
        yield folder


def _fill(folder: Path, files: Mapping[str, str]) -> None:
    try:
        with storing(folder):
            for package in (orchestrator, trainers):
                source = Path(next(iter(package.__path__)))
                shutil.copytree(source, folder / source.name, ignore=_not_code)
            for file_name, text in files.items():
                (folder / file_name).write_text(text, encoding="utf-8")
    except shutil.Error as err:  # holds every file that could not be copied, without its errno
        _, target, reason = err.args[0][0]
        raise StorageError(
            f"storage: {target} cannot be written: {reason}; {free_space(folder)}. Free space there, or name another folder in TMPDIR."
        ) from err


def _not_code(folder: str, names: list[str]) -> list[str]:
    """Everything but modules and sub-packages: no keys, tokens, .env, notebooks or data that somebody left beside them, no links."""
    kept = {name for name in names if not name.startswith(".") and name != "__pycache__" and not (Path(folder) / name).is_symlink()}
    return [name for name in names if name not in kept or not (name.endswith((".py", ".typed")) or (Path(folder) / name).is_dir())]
