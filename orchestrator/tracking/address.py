"""What may be the address of an MLflow server, checked where it is written, before anything runs; and what of it nobody may read."""

import os
import re
import traceback
from urllib.parse import urlsplit

from orchestrator.errors import ConfigError

WHERE_CREDENTIALS_GO = (
    "Name the server without them and export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) where the "
    "cluster's head is started; for the local one before `nnfleet up`"
)


def check_tracking_uri(uri: str) -> str:
    """`uri` if it is http(s)://host[:port][/path] or empty. Raises ConfigError otherwise, never repeating a password."""
    if not uri:
        return uri
    refuse_credentials(uri)
    if not _is_server(uri):
        raise ConfigError(
            f"tracking.uri: {uri!r} is not the address of an MLflow server (http://HOST:PORT or https://...). Files and databases "
            "are refused: artifacts would end in a job's temporary folder. Leave it out for the server that `nnfleet up` starts."
        )
    return uri


def refuse_credentials(uri: str) -> None:
    """Raise ConfigError when a tracking URI holds a user or password: it is stored with every run and shown in lists of jobs."""
    if "@" in uri.split("/", 3)[2] if uri.count("/") > 1 else "@" in uri:
        raise ConfigError(f"tracking.uri: it holds a user or password. {WHERE_CREDENTIALS_GO}.")


def _is_server(uri: str) -> bool:
    try:
        url = urlsplit(uri)
        return uri.isprintable() and " " not in uri and url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # brackets that do not match, or a port that is none
        return False


SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_SECRETS = (
    (re.compile(r"(\w+://)[^\s/@'\"]+@"), r"\1***@"),
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
    told = "".join(part for line in traceback.TracebackException.from_exception(error).format(chain=True) for part in line)
    return masked(told) != told
