"""nnfleet's own folder on a machine: private, and with a token that is one."""

from pathlib import Path

import pytest

from orchestrator import services
from orchestrator.paths import Home


def test_a_home_that_others_can_read_is_narrowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = Home(tmp_path / "home")
    home.root.mkdir(mode=0o755)
    home.root.chmod(0o755)
    with caplog.at_level("INFO"):
        home.create()
    assert [path.stat().st_mode & 0o777 for path in (home.root, home.artifacts, home.logs)] == [0o700] * 3
    assert [record.message for record in caplog.records if "narrowed" in record.message]
    caplog.clear()
    home.create()
    assert caplog.records == []


@pytest.mark.parametrize("content", ["", "\n", " "])
def test_an_empty_token_is_replaced(content: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(content)
    services._ensure_token(token)
    assert len(services.read_token(token)) == 64
    assert token.stat().st_mode & 0o777 == 0o600


def test_a_token_that_is_one_stays(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("mine")
    token.chmod(0o644)
    services._ensure_token(token)
    assert services.read_token(token) == "mine"
    assert token.stat().st_mode & 0o777 == 0o600
