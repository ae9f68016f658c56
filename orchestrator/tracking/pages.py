"""MLflow's searches answer page by page."""

from collections.abc import Iterator
from typing import Any


def pages(search: Any, *arguments: Any) -> Iterator[Any]:
    """Everything that a search of MLflow's client finds."""
    token = None
    while True:
        page = search(*arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
