"""Whether a server knows a run, asked without MLflow's client: only a clear answer counts."""

import json
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import pytest

from orchestrator.tracking.asked import MOST_RUNS, lacks_runs
from tests.serving import serving

NONE: dict[str, Any] = {}
ONE = {"experiments": [{"experiment_id": "7"}]}


class Server(BaseHTTPRequestHandler):
    """Answers as `experiments` and `runs` say: with a status and JSON, or with bytes."""

    experiments: ClassVar[Any] = ONE
    runs: ClassVar[Any] = NONE
    status: ClassVar[int] = 200
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        content = self.runs if self.path == "/api/2.0/mlflow/runs/search" else self.experiments
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("answers", "lacks"),
    [
        ({}, True),
        ({"experiments": NONE}, True),
        ({"runs": {"runs": [{"info": {"run_id": "x"}}]}}, False),
        ({"experiments": {**ONE, "next_page_token": "more"}}, False),
        ({"status": 401}, False),
        ({"status": 500}, False),
        ({"experiments": b"<html>"}, False),
        ({"experiments": [1]}, False),
        ({"experiments": {"experiments": [3]}}, False),
        ({"experiments": {"experiments": 3}}, False),
        ({"experiments": b"[" * 100_000}, False),
        ({"runs": None}, False),
    ],
)
def test_only_a_server_that_says_so_has_no_such_run(answers: dict[str, Any], lacks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"asked": [], **answers}.items():
        monkeypatch.setattr(Server, name, value)
    with serving(Server) as address:
        assert lacks_runs(f"{address}/", ["k"]) is lacks
    if lacks and "experiments" not in answers:
        wanted = {"experiment_ids": ["7"], "filter": "tags.`nnfleet.run_key` = 'k'", "max_results": 1}
        assert Server.asked[1:] == [wanted]


@pytest.mark.parametrize(("uri", "count"), [("sqlite:////tmp/x.db", 1), ("http://127.0.0.1:1", 1), ("http://127.0.0.1:1", MOST_RUNS + 1)])
def test_what_is_not_asked_is_not_learnt(uri: str, count: int) -> None:
    assert lacks_runs(uri, [f"k{n}" for n in range(count)]) is False
