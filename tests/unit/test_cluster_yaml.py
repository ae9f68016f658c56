"""cluster.yaml is a file that Ray itself accepts, and one that leaves nothing open."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER_FILE = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    content = yaml.safe_load(CLUSTER_FILE.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def validated(content: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(content)
    validate_config(prepared)
    assert isinstance(prepared, dict)
    return prepared


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    workers = len(cluster["provider"]["worker_ips"])
    prepared = validated(cluster)
    (node_type,) = prepared["available_node_types"].values()
    assert node_type["min_workers"] == workers
    assert prepared["provider"]["head_ip"] not in prepared["provider"]["worker_ips"]


def test_ray_refuses_a_misspelt_key(cluster: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        validated({**cluster, "max_worker": 3})


def start_lines(cluster: dict[str, Any], kind: str) -> list[str]:
    return [line for line in cluster[f"{kind}_start_ray_commands"] if "ray start" in line]


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_every_ray_process_demands_the_token_and_knows_the_folders(cluster: dict[str, Any], kind: str) -> None:
    (line,) = start_lines(cluster, kind)
    assert "RAY_AUTH_MODE=token" in line
    assert line.index("RAY_AUTH_MODE=token") < line.index("ray start")
    assert all(f"{name}=/data/nnunet/" in line for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"))
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_the_head_serves_its_dashboard_and_trains_nothing(cluster: dict[str, Any]) -> None:
    (line,) = start_lines(cluster, "head")
    assert "--dashboard-host=0.0.0.0" in line
    assert "--num-cpus=0 --num-gpus=0" in line


def test_the_head_misses_a_silent_machine_within_seconds(cluster: dict[str, Any]) -> None:
    (line,) = start_lines(cluster, "head")
    settings = {name: int(value) for name, value in re.findall(r"RAY_health_check_(\w+)=(\d+)", line[: line.index("ray start")])}
    assert settings == {"initial_delay_ms": 2000, "period_ms": 1000, "timeout_ms": 2000, "failure_threshold": 3}


def test_the_head_knows_the_mlflow_server_that_it_starts(cluster: dict[str, Any]) -> None:
    (start,) = start_lines(cluster, "head")
    (server,) = (line for line in cluster["head_start_ray_commands"] if "mlflow server" in line)
    assert "--host 127.0.0.1 --port 5000" in server
    assert "MLFLOW_TRACKING_URI=http://127.0.0.1:5000;" in start
    assert start.index("MLFLOW_TRACKING_URI") < start.index("ray start")


def test_mlflow_listens_on_loopback_only(cluster: dict[str, Any]) -> None:
    (line,) = (line for line in cluster["head_start_ray_commands"] if "mlflow server" in line)
    assert "--host 127.0.0.1" in line


def test_every_command_is_valid_shell(cluster: dict[str, Any]) -> None:
    for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for line in cluster[key]:
            checked = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, f"{line}\n{checked.stderr}"
