"""Which file system a folder lies on, by what the kernel lists as mounted."""

import re
from pathlib import Path

MOUNTS_FILE = Path("/proc/self/mounts")
LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "overlay"})
"""What run folders are commonly on, and nobody has to be told of."""
LINKLESS = frozenset({"cifs", "smb3", "vfat", "msdos", "exfat", "fuseblk", "vboxsf", "9p"})
"""Types that mostly make no hard links, as do many of FUSE (`fuse.sshfs`)."""


def file_system_of(place: Path, mounts_file: Path = MOUNTS_FILE) -> str:
    """The type of the file system that holds `place`, which need not exist yet: `ext4`, `nfs4`, `cifs`, `fuse.sshfs`; '' if unknown."""
    try:
        lines = mounts_file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        wanted = place.resolve()
    except (OSError, RuntimeError):  # no Linux, or links in a circle
        return ""
    found = [(Path(_unescaped(fields[1])), fields[2]) for line in lines if len(fields := line.split(" ")) > 2]
    holding = [(len(point.parts), number, kind) for number, (point, kind) in enumerate(found) if wanted.is_relative_to(point)]
    return max(holding, default=(0, 0, ""))[2]  # the deepest; of several on one folder the last one lies on top


def is_linkless(kind: str) -> bool:
    """Whether checkpoints on a file system of this type are probably copied where a second name would do."""
    return kind in LINKLESS or kind.startswith("fuse.")


def _unescaped(field: str) -> str:
    """A mount point as it is: the kernel writes spaces and the like in octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
