"""Stand-ins for case ids in what goes to the tracking server, which nobody can trace back by trying case ids."""

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from trainers.errors import DataError
from trainers.storage.exclusive import create_exclusive

SALT_FILE = ".nnfleet_salt"


def pseudonym_salt(results: Path) -> str:
    """The secret of a dataset's results folder, made once at random, readable by its owner alone: 64 hexadecimal digits.

    It never leaves that folder, and a case has one pseudonym in all runs there. Raises DataError when the file holds something else.
    """
    file = results / SALT_FILE
    try:
        if not file.exists():
            create_exclusive(file, secrets.token_hex(32).encode(), mode=0o600)
        salt = file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as err:
        raise DataError(f"pseudonyms: {file} cannot be read: {err}. The user who made the first run of this dataset owns it.") from err
    if not re.fullmatch("[0-9a-f]{64}", salt):
        raise DataError(f"pseudonyms: {file} does not hold 64 hexadecimal digits. Restore it; if it is removed, cases get new pseudonyms.")
    return salt


def pseudonym(case_id: str, salt: str) -> str:
    """The stand-in for a case: 'case-' and 8 hexadecimal digits of its keyed hash."""
    return "case-" + hmac.new(salt.encode(), case_id.encode(), hashlib.sha256).hexdigest()[:8]
