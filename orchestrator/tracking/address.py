"""What may be the address of an MLflow server, checked where it is written, before anything runs; and which parts of texts are secret."""

import os
import re
import traceback
from urllib.parse import urlsplit

from orchestrator.cluster.address import DEFAULT_PORTS, holds_credentials, host_and_port
from orchestrator.errors import ConfigError

WHERE_CREDENTIALS_GO = (
    "Name the server without them and export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) where the "
    "cluster's head is started; for the local one before `nnfleet up`"
)


def check_tracking_uri(uri: str, source: str = "tracking.uri") -> str:
    """`uri` if it is http(s)://host[:port][/path] or empty. Raises ConfigError otherwise, naming `source` and never repeating the address:
    what is refused may hold a password in any place."""
    if not uri:
        return uri
    refuse_credentials(uri, source)
    if not _is_server(uri):
        raise ConfigError(
            f"{source}: it is not the address of an MLflow server. Write http://HOST:PORT or https://HOST/PATH, without a query. Files and "
            "databases are refused: artifacts would end in a job's temporary folder. Leave it out for the server that `nnfleet up` starts."
        )
    return uri


def refuse_credentials(uri: str, source: str = "tracking.uri") -> None:
    """Raise ConfigError when a tracking URI holds a user, a password or, in a query or fragment, a token: it is stored with every run and
    shown in lists of jobs."""
    if holds_credentials(uri):
        raise ConfigError(f"{source}: it holds a user, a password or a query (which may hold a token). {WHERE_CREDENTIALS_GO}.")


def _is_server(uri: str) -> bool:
    try:
        host_and_port(uri)
    except ValueError:
        return False
    return uri.isprintable() and " " not in uri and urlsplit(uri).scheme in DEFAULT_PORTS


def is_path(location: str) -> bool:
    """True for a place of artifacts that every client takes for a path of its own machine: `file:`, no scheme, or a drive's letter."""
    scheme = urlsplit(location).scheme
    return scheme in ("", "file") or len(scheme) == 1


SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_SECRETS = (
    (re.compile(r"(\w+://)[^\s/@'\"]+@"), r"\1***@"),
    (re.compile(r"[^\s/@'\":]{1,100}:[^\s@'\"]{0,200}@"), "***@"),  # without a scheme, or with a slash in the password
    (re.compile(r"\b(Basic|Bearer)\s+[\w+/=.~-]{6,}", re.IGNORECASE), r"\1 ***"),
    (re.compile(r"([?&](?:[\w-]*(?:token|signature|sig|credential|password|secret|key))=)[^&\s'\")]+", re.IGNORECASE), r"\1***"),
)


def masked(text: str) -> str:
    """`text` without logins, tokens and signatures of addresses: error texts of libraries quote whole addresses and headers."""
    for name in SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= 4:
            text = text.replace(value, "***")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def holds_secret(error: BaseException) -> bool:
    """True when a traceback of `error`, with its causes, would print a secret."""
    printed = "".join(part for line in traceback.TracebackException.from_exception(error).format(chain=True) for part in line)
    return masked(printed) != printed
