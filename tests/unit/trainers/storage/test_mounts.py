"""Which file system a folder lies on."""

from pathlib import Path

import pytest

from trainers.storage.mounts import MOUNTS_FILE, file_system_of, is_linkless

MOUNTS = r"""/dev/vda / ext4 rw 0 0
auto /mnt autofs rw 0 0
//server/share /mnt/my\040share cifs rw 0 0
host:/x /mnt/lab nfs4 rw 0 0
x:/y /mnt/lab fuse.sshfs rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/home/results", "ext4"),
        ("/mnt", "autofs"),
        ("/mnt/laboratory", "autofs"),
        ("/mnt/my share/results/not made yet", "cifs"),
        ("/mnt/lab/results", "fuse.sshfs"),
    ],
)
def test_the_deepest_mount_holds_a_folder_and_the_last_one_on_it(tmp_path: Path, place: str, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert file_system_of(Path(place), mounts) == kind
    assert is_linkless(kind) == (kind in ("cifs", "fuse.sshfs"))


def test_nothing_is_known_without_the_list(tmp_path: Path) -> None:
    assert file_system_of(tmp_path, tmp_path / "none") == ""


@pytest.mark.skipif(not MOUNTS_FILE.exists(), reason="only Linux lists mounts there")
def test_the_process_file_system_is_known_by_its_name() -> None:
    assert file_system_of(Path("/proc/self")) == "proc"
