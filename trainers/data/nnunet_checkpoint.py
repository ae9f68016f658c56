"""What a checkpoint of nnU-Net's says of its training, read without torch and without executing anything in it.

The file is a zip archive with one pickle, which names its tensors, and their bytes, which are not read. The pickle goes through the reader
of case properties (`restricted_pickle.py`); every name of torch's stands there for nothing, so what is made of tensors is None.

Source of the keys: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py, save_checkpoint.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

from trainers.data.restricted_pickle import PropertiesUnpickler, loads_with
from trainers.errors import CheckpointError
from trainers.storage.faults import reading

MAX_PICKLE_BYTES = 1 << 28
"""Of the pickle alone; that of a thousand epochs and a large network has a few megabytes."""


def read_training_facts(path: Path) -> dict[str, Any]:
    """The keys of a checkpoint with None in place of every tensor.

    Raises CheckpointError, naming the file and what is wrong with it, or StorageError.
    """
    try:
        with reading(path), zipfile.ZipFile(path) as archive:
            content = _pickle_in(archive)
        facts = loads_with(_CheckpointUnpickler(content))
    except OSError as err:
        raise CheckpointError(f"checkpoint: {path} cannot be read: {err.strerror}. Restore the file.") from err
    except (ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as err:
        raise CheckpointError(f"checkpoint: {path} is not read: {err}. Restore the file, or find out who wrote it.") from err
    if not isinstance(facts, dict) or "network_weights" not in facts:
        raise CheckpointError(f"checkpoint: {path} holds nothing under 'network_weights' and is no nnU-Net checkpoint. Take another one.")
    return facts


def _pickle_in(archive: zipfile.ZipFile) -> bytes:
    members = [item for item in archive.infolist() if item.filename.endswith("data.pkl")]
    if len(members) != 1:
        raise ValueError(f"it holds {len(members)} pickles where torch writes one")
    if members[0].compress_type != zipfile.ZIP_STORED or members[0].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle is compressed or larger than {MAX_PICKLE_BYTES} bytes, as torch writes none")
    return archive.read(members[0])


def _nothing(*_: object, **__: object) -> None:
    return None


class _CheckpointUnpickler(PropertiesUnpickler):
    """That of case properties, with tensors as None."""

    what: ClassVar[str] = "checkpoints"
    dispatch: ClassVar[dict[int, Any]] = dict(PropertiesUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        return _nothing if module.split(".")[0] == "torch" else super().find_class(module, name)

    def load_binpersid(self) -> None:
        self.stack[-1] = None

    dispatch[pickle.BINPERSID[0]] = load_binpersid

    def load_build(self) -> None:
        """State of torch's dictionaries of weights, their versions, is dropped."""
        if isinstance(self.stack[-2], OrderedDict) or self.stack[-2] is None:
            self.stack.pop()
        else:
            super().load_build()

    dispatch[pickle.BUILD[0]] = load_build
