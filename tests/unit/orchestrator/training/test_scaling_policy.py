"""How the nodes of an elastic run are asked whether they live."""

import socket
import threading
from typing import Any

import pytest

from orchestrator.training import scaling_policy


def node(name: str, port: int) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}


def test_a_node_lives_whose_port_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there, socket.create_server(("127.0.0.1", 0)) as gone:
        nodes = [node("there", there.getsockname()[1]), node("gone", gone.getsockname()[1])]
        gone.close()
        assert scaling_policy.answering(nodes) == {"there"}
    assert scaling_policy.answering([]) == set()


def test_nodes_are_asked_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that cannot be reached takes two seconds, in which Ray's controller does nothing else."""
    nodes = [node(str(number), 1) for number in range(20)]
    all_asked = threading.Barrier(len(nodes), timeout=30)
    monkeypatch.setattr(scaling_policy, "answers", lambda node: all_asked.wait() >= 0)
    assert scaling_policy.answering(nodes) == {node["NodeID"] for node in nodes}
