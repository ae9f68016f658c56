"""The login that a tracking server gets is the one that the user named for it, never one that ~/.netrc holds for its host as well."""

import logging
import os
from typing import Any

log = logging.getLogger(__name__)


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
