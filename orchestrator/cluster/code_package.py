"""What a Ray job gets as its working directory: the code of our own packages and nothing else that lies there, and files beside it."""

import io
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import orchestrator
import trainers
from orchestrator.cluster.home import Home
from trainers.contract.own_code import OWN_CODE, digest_of, place_of, stored_files
from trainers.errors import ClusterError
from trainers.storage.faults import reading
from trainers.storage.files import write_atomic

log = logging.getLogger(__name__)
REPORT_FILES = frozenset({"page.html.j2", "slice_viewer.js"})
"""What is no module, and the report of a comparison is made of."""
_UNDATED = (1980, 1, 1, 0, 0, 0)
"""The same code is the same bytes, so that the cluster stores it once."""


def packed(files: Mapping[str, str]) -> bytes:
    """A zip file with the packages as they are installed here, and `files` (name -> text). Under a megabyte; nothing is written here.

    Raises StorageError where the disk of the packages is away, OSError where they cannot be read.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        for package in (orchestrator, trainers):
            source = Path(next(iter(package.__path__)))
            with reading(source):
                for file in code_files(source):
                    _add(target, f"{source.name}/{file.relative_to(source).as_posix()}", file.read_bytes())
        for name, text in sorted(files.items()):
            _add(target, name, text.encode())
    return content.getvalue()


def keep_code(home: Home, functions: Iterable[Mapping[str, str]]) -> None:
    """Keep the files (name -> text) of the user's own functions, so that every package from here brings them: to `resume` too.

    Raises ClusterError where they cannot be written.
    """
    for files in functions:
        folder = place_of(home.root, digest_of(files))
        try:
            home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, text in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_atomic(folder / name, text.encode())
        except OSError as err:
            raise ClusterError(f"home: {folder} cannot be written: {err}. Set NNFLEET_HOME to a folder that you may write.") from err


def code_kept(home: Home) -> dict[str, str]:
    """Place in the code package -> text, of the files of every function of the user's that was kept here and can be read: a job whose run
    names another one refuses it."""
    found: dict[str, str] = {}
    for folder in sorted(home.own_code.glob("*/")):
        try:
            found |= {f"{OWN_CODE}/{folder.name}/{name}": text for name, text in stored_files(folder).items()}
        except (OSError, UnicodeDecodeError) as err:
            log.warning("home: the functions in %s cannot be read and are not sent: %s", folder, err)
    return found


def _add(target: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _UNDATED)
    entry.external_attr = 0o644 << 16
    target.writestr(entry, content, zipfile.ZIP_DEFLATED, compresslevel=1)


def _raise(error: OSError) -> None:
    raise error


def code_files(source: Path) -> Iterator[Path]:
    """The modules below a package and `REPORT_FILES`, in one order: no keys, tokens, .env, notebooks or data that somebody left beside
    them, no links.

    Raises OSError for a folder that cannot be listed.
    """
    for folder, below, names in os.walk(source, onerror=_raise):
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "__pycache__")
        kept = (name for name in sorted(names) if name in REPORT_FILES or (name.endswith((".py", ".typed")) and not name.startswith(".")))
        yield from (file for name in kept if not (file := Path(folder) / name).is_symlink())
