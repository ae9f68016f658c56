"""Addresses of servers: which host and port they mean, and whether they hold a login, which no log and no list of jobs may show."""

import re
from urllib.parse import unquote, urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}
_BEFORE_THE_PATH = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?[/\\]*([^/\\?#]*)", re.IGNORECASE)


def holds_credentials(address: str) -> bool:
    """True when an `@` stands before the path (with or without a scheme, after any number of slashes: `user:password@host/path`), or when
    there is a query or fragment, where tokens go."""
    text = re.sub(r"[\x00-\x20]", "", address)  # clients of HTTP drop such characters
    found = _BEFORE_THE_PATH.match(text)
    return found is not None and ("@" in unquote(found[1]) or not {"?", "#"}.isdisjoint(text))


def host_and_port(address: str) -> tuple[str, int]:
    """The host and port of `scheme://host[:port]...` or `host:port`. Raises ValueError, which never repeats the address."""
    try:
        url = urlsplit(address if "://" in address else f"//{address}")
        host, port = url.hostname, DEFAULT_PORTS.get(url.scheme) if url.port is None else url.port
    except ValueError:  # brackets that do not match, or a port that is none
        host, port = None, None
    if not host or not port:
        raise ValueError("the address names no host, or no port from 1 to 65535")
    return host, port
