"""Is an image file as long as its header says?

SimpleITK silently reads a NIfTI or GIPL file that was cut, with zeros or whatever lay in memory for what is missing. As its readers do,
this looks at the first bytes and not at the name to tell a packed file, and what follows the image is nobody's affair.
"""

import contextlib
import io
import math
import zlib
from collections.abc import Generator
from pathlib import Path

_NIFTI_MAGIC = {344: b"n+1\0", 4: b"n+2\0"}
"""Where the two versions of the format have their mark."""
_LEAST_NIFTI = 348
_GIPL_HEADER = 256
_GZIP = b"\x1f\x8b"
_HEAD = 544
"""Bytes that hold every header looked at here."""
_BLOCK = 1 << 20
"""So much is read, and unpacked, at a time."""


def check_whole(path: Path) -> None:
    """Raise ValueError or OSError for a NIfTI or GIPL file that was cut. Files of other kinds are left to their readers, which notice."""
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz", ".gipl")):
        return
    try:
        with contextlib.closing(_unpacked(path)) as blocks:
            head = b""
            while len(head) < _HEAD and (block := next(blocks, b"")):
                head += block
            needed = _needed_gipl(path) if name.endswith(".gipl") else _needed_nifti(head)
            found = len(head) + sum(map(len, blocks))
    except OSError:
        raise
    except Exception as err:  # of zlib, nibabel or SimpleITK
        raise ValueError(f"the file was cut or is damaged: {type(err).__name__}: {err}") from err
    if found < needed:
        raise ValueError(f"the file was cut: {found} of {needed} bytes are there")


def _needed_nifti(head: bytes) -> int:
    """Bytes of the whole image; of another kind of file those of a header, for its reader knows better."""
    import nibabel

    for (start, magic), kind in zip(_NIFTI_MAGIC.items(), (nibabel.Nifti1Header, nibabel.Nifti2Header), strict=True):
        if head[start : start + 4] == magic:
            header = kind.from_fileobj(io.BytesIO(head), check=False)
            return int(header.get_data_offset()) + math.prod(map(int, header.get_data_shape())) * int(header.get_data_dtype().itemsize)
    return _LEAST_NIFTI


def _needed_gipl(path: Path) -> int:
    import SimpleITK as sitk  # noqa: N813 - its own name in its documentation

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    voxel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    components = int(reader.GetNumberOfComponents())
    return _GIPL_HEADER + math.prod(map(int, reader.GetSize())) * components * int(voxel.GetSizeOfPixelComponent())


def _unpacked(path: Path) -> Generator[bytes, None, None]:
    """What a file holds, block by block, unpacked where it is gzip. What follows its last whole member is skipped, as zlib itself does.

    Raises ValueError when it ends within a member, zlib.error when a check sum differs.
    """
    with path.open("rb") as stream:
        block = stream.read(_BLOCK)
        if not block.startswith(_GZIP):
            while block:
                yield block
                block = stream.read(_BLOCK)
            return
        while block.startswith(_GZIP):
            member = zlib.decompressobj(wbits=31)
            while not member.eof:
                if not block:
                    raise ValueError("it ends before its last packed byte")
                yield member.decompress(block, _BLOCK)
                block = member.unused_data if member.eof else member.unconsumed_tail or stream.read(_BLOCK)
            if len(block) < len(_GZIP):
                block += stream.read(_BLOCK)
