"""The login that a tracking server gets is the one that the user named for it, never one that ~/.netrc holds for its host as well."""

import base64
import configparser
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from requests import PreparedRequest

log = logging.getLogger(__name__)
PREFIX = "MLFLOW_TRACKING_"


@dataclass(frozen=True)
class Access:
    """How MLflow's client reaches a server, for a reader without that client."""

    authorization: str = field(repr=False)
    """The header; empty: none is named, and requests takes what ~/.netrc has, for that client too."""
    verify: bool | str
    """Certificates that are trusted: a file, or those of the system; False: any."""
    client_certificate: str | None

    def sign(self, request: "PreparedRequest") -> "PreparedRequest":
        """A login of requests, which then takes none of ~/.netrc."""
        request.headers["Authorization"] = self.authorization
        return request


def access_of(environment: Mapping[str, str]) -> Access:
    """As MLflow's client has it (`mlflow/utils/credentials.py`, `rest_utils.py`): user and password before a token, its variables before
    ~/.mlflow/credentials. Raises ValueError, without a secret, for what only that client can do or refuses.
    """
    named = {name.removeprefix(PREFIX): value for name, value in environment.items() if name.startswith(PREFIX) and value}
    insecure = _is_true(named.get("INSECURE_TLS", "false"))
    if "AUTH" in named or _is_true(named.get("AWS_SIGV4", "false")):
        raise ValueError("a way to log in that MLflow's client alone knows")
    if insecure and "SERVER_CERT_PATH" in named:
        raise ValueError("certificates that are trusted beside those that are not checked")
    kept = _kept_login()
    login = [named.get(name) or kept.get(f"{PREFIX}{name}".lower(), "") for name in ("USERNAME", "PASSWORD")]
    basic = base64.b64encode(":".join(login).encode()).decode()
    authorization = f"Basic {basic}" if all(login) else f"Bearer {named['TOKEN']}" if "TOKEN" in named else ""
    return Access(authorization, named.get("SERVER_CERT_PATH", not insecure), named.get("CLIENT_CERT_PATH"))


def _is_true(text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise ValueError("neither true nor false")
    return text.lower() in ("true", "1")


def _kept_login() -> dict[str, str]:
    """Of MLflow's credentials file; empty where there is none."""
    try:
        parser = configparser.ConfigParser()
        parser.read(Path("~/.mlflow/credentials").expanduser())
        return dict(parser["mlflow"]) if "mlflow" in parser else {}
    except (configparser.Error, RuntimeError):  # whose texts quote the file; without a home folder
        raise ValueError("MLflow's credentials file cannot be read") from None


def prefer_over_netrc(credentials: Any, uri: str) -> None:
    """With `credentials` (MLflow's MlflowHostCreds of `uri`), keep requests from replacing them by what a netrc file has for that host.

    requests does that to any Authorization header (psf/requests#3929), and MLflow's client cannot be given a session of ours. Proxies and
    certificates of the environment stay as they are. Nothing is changed where no netrc file names the host.
    """
    from requests.utils import get_netrc_auth

    has_login = credentials.token or (credentials.username and credentials.password)
    if not has_login or get_netrc_auth(uri) is None:
        return
    os.environ["NETRC"] = os.devnull
    log.warning("~/.netrc has a login for the host of %s too: it is not used, as MLflow's own variables or credentials file name one", uri)
