"""Text of terminals for those who are none."""

import re

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def without_colours(text: str) -> str:
    """`text` without the codes by which Ray and others colour it."""
    return _COLOURS.sub("", text)
