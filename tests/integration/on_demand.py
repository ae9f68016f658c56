"""Nodes that Ray's own autoscaler starts and ends: daemons of this machine, each with a temporary folder of its own.

Ray's provider for its tests leaves all nodes one folder, in which they unpack code over each other's.
"""

import functools
import tempfile
from typing import Any
from unittest.mock import patch

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

HEAD_KIND = "ray.head.default"
NO_COMMANDS = [
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
]
ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_NODE_TYPE_NAME": HEAD_KIND,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}
"""Of the head."""


class Provider(FakeMultiNodeProvider):
    """Named in the configuration, imported by the head's autoscaler."""

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        folder = tempfile.mkdtemp(prefix="n", dir=self.provider_config["folder"])
        with patch.object(parameter, "RayParams", functools.partial(parameter.RayParams, temp_dir=folder)):
            create: Any = super()._create_node_with_resources_and_labels
            create(*arguments)


def configuration(gcs_port: int, folder: str, most: int, memory: int) -> dict[str, Any]:
    """No node beside the head, and up to `most` of one CPU each once they are asked for, some of them with a GPU that is none; unused ones
    end. `folder`: a short path."""
    usual = {"node_config": {}, "min_workers": 0, "max_workers": most}
    one_cpu = {**usual, "resources": {"CPU": 1, "object_store_memory": memory}}
    t4, a100 = (
        {**usual, "resources": {**one_cpu["resources"], "GPU": 1, f"accelerator_type:{kind}": 1}}  # type: ignore[dict-item]
        for kind in ("T4", "A100")
    )
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "on-demand",
        "max_workers": most,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": f"{__name__}.{Provider.__name__}",
            "gcs_address": f"127.0.0.1:{gcs_port}",
            "folder": folder,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "use_node_id_as_ip": True,
        },
        "available_node_types": {HEAD_KIND: head, "one-cpu": one_cpu, "t4": t4, "a100": a100},
        "head_node_type": HEAD_KIND,
        "upscaling_speed": 1,
        "file_mounts_sync_continuously": False,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in (*NO_COMMANDS, "cluster_synced_files", "rsync_exclude", "rsync_filter")},
    }
