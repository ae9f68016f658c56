"""Which cluster Ray's own variables name, and the cluster that this machine is a node of: what Ray calls `auto`."""

import os
from typing import Any
from urllib.parse import urlsplit

from orchestrator.cluster.address import DEFAULT_PORTS, holds_credentials, host_and_port
from trainers.errors import ClusterError, ConfigError

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""The variables that Ray's own `ray job` reads, in its order."""
AUTO = "auto"
LOOKUP_S = 20.0


def named_by_environment() -> str | None:
    """The cluster that Ray's own environment variables name, if any; `local` is Ray's word for none."""
    return next((value for name in ADDRESS_VARIABLES if (value := os.environ.get(name)) and value != "local"), None)


def source_of(address: str) -> str:
    """Where an address comes from: the variable that holds it, else the command line."""
    return next((name for name in ADDRESS_VARIABLES if os.environ.get(name) == address), "--cluster")


def server_of(address: str) -> tuple[str, int]:
    """Host and port of a dashboard's URL, or of a GCS address as Ray gives it to a job. Raises ConfigError for anything else, without
    repeating it."""
    source = source_of(address)
    if holds_credentials(address):
        raise ConfigError(
            f"cluster: its address ({source}) holds a user, a password or a query (which may hold a token). Addresses are shown in logs "
            "and lists of jobs: name the dashboard without them. Ray finds a token by RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH; the "
            "login of a proxy before it belongs into ~/.netrc."
        )
    try:
        if "://" in address and urlsplit(address).scheme not in DEFAULT_PORTS:
            raise ValueError("a scheme that the job server does not speak")
        return host_and_port(address)
    except ValueError:
        found = "an address of Ray Client (ray://)" if address.startswith("ray://") else "no address of a job server"
        place = f"{source} is" if source in ADDRESS_VARIABLES else "--cluster is"
        beside = f", in {ADDRESS_VARIABLES[0]}, which goes before it" if source == ADDRESS_VARIABLES[1] else ""
        raise ConfigError(
            f"cluster: {place} {found}. Name the dashboard, as `ray job submit` takes it: http://HOST:8265{beside}."
        ) from None


def cluster_of_this_machine() -> str:
    """The control store (GCS) of the cluster that this machine is a node of, as host:port. Raises ClusterError if there is not one."""
    from ray._private import services

    untyped: Any = services
    return chosen(untyped.find_bootstrap_address(None), untyped.find_gcs_addresses())


def chosen(latest: str | None, running: frozenset[str]) -> str:
    """Of the control stores that processes of this machine use, the one that the last `ray start` noted; it may be gone by now. Pure."""
    if latest is not None and latest in running:
        return latest
    if len(running) == 1:
        return next(iter(running))
    found = f"several run here ({', '.join(sorted(running))})" if running else "none runs on this machine"
    raise ClusterError(
        f"cluster: {source_of(AUTO)} is 'auto', the Ray cluster that this machine is a node of, but {found}. Set {ADDRESS_VARIABLES[0]} "
        "to the dashboard of the one that you mean (http://HOST:8265), or unset the variable for the local services (`nnfleet up`)."
    )


def job_server_of(control_store: str) -> str:
    """The job server of the cluster with this control store. Raises what Ray raises: AuthenticationError, RpcError."""
    from ray import _raylet
    from ray._private import ray_constants

    untyped: Any = _raylet
    found = untyped.GcsClient(address=control_store).internal_kv_get(
        ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD, timeout=LOOKUP_S
    )
    if not found:
        raise ClusterError(
            f"cluster: {control_store} knows no job server. Its head needs Ray's dashboard: `pip install 'ray[default]'` there."
        )
    return f"http://{found.decode()}"


def auth_headers() -> dict[str, str]:
    """The headers with the token that Ray finds for its servers. Ray is not imported where nothing speaks of a token."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    names_token = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if mode == "disabled" or not (mode or names_token or os.path.exists(os.path.expanduser("~/.ray/auth_token"))):
        return {}
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    return dict(get_auth_headers_if_auth_enabled({}))
