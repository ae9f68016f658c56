"""The environment of the local services: quiet, on loopback, and without the address of any other cluster."""

import os
import sys
from pathlib import Path

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_enable_metrics_collection": "0",  # its thread reads the environment while others write it, which may kill a worker (ray#62028)
    "RAY_enable_open_telemetry": "0",  # each of the two switches alone leaves such a thread
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "DO_NOT_TRACK": "true",
}
"""Nothing calls home, lines of different ranks are not folded into one, and no process of Ray exports metrics (to Prometheus)."""
LOGIN_VARIABLES = frozenset(
    f"MLFLOW_TRACKING_{name}"
    for name in ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4", "INSECURE_TLS", "CLIENT_CERT_PATH", "SERVER_CERT_PATH")
)
"""Login and trusted certificates of MLflow's client; the jobs of the local head use it for an MLflow server of the user's own."""
SUBMISSION_VARIABLE = "NNFLEET_SUBMISSION_ID"
"""In the environment of a job's processes: its submission id."""
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what Ray sets on macOS: the node's address is 127.0.0.1, and every server binds there only
    "AUTOSCALER_METRIC_PORT": "0",  # any free one: the fixed ports collide with another head on this machine
    "DASHBOARD_METRIC_PORT": "0",
}


RAY_SWITCHES = frozenset(
    {"RAY_BACKEND_LOG_LEVEL", "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "RAY_ROTATION_MAX_BYTES", "RAY_ROTATION_BACKUP_COUNT"}
)
"""Those of Ray's documented switches in capitals that concern a head alone. The others name a cluster, a job, a login or a hook."""


def service_environment() -> dict[str, str]:
    """This process's environment with our interpreter first on PATH, quiet, and without the address of any other cluster.

    Ray's own switches (RAY_memory_usage_threshold and all others that its documentation writes small) stay, for the head to obey.
    A login to an MLflow server of the user's own stays (MLFLOW_TRACKING_USERNAME and so on). nnU-Net's folders go: each submission
    brings its own, and those of the shell that happened to call `up` must not stand in for them.
    """
    strange = {"OMP_NUM_THREADS", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"}
    kept = {k: v for k, v in os.environ.items() if _is_kept(k) and k not in strange}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return {**kept, **QUIET, **without_proxy(kept), "PATH": path}


def _is_kept(name: str) -> bool:
    if name.startswith("RAY_"):
        return name in RAY_SWITCHES or name.removeprefix("RAY_")[:1].islower()
    return name in LOGIN_VARIABLES or not name.startswith("MLFLOW_")


def without_proxy(environment: dict[str, str]) -> dict[str, str]:
    """NO_PROXY extended by loopback: a hospital's proxy cannot reach our services."""
    before = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    names = [name for name in before.split(",") if name]
    value = ",".join([*names, *(host for host in ("127.0.0.1", "localhost") if host not in names)])
    return {"NO_PROXY": value, "no_proxy": value}
