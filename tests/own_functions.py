"""Functions of a user's own as the code package of a job brings them, and the examples of docs/examples."""

from pathlib import Path

import pytest

from trainers.contract import own_code
from trainers.contract.run_spec import OwnCode

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
NAMES = {"network": "own_network:small_unet", "loss": "own_loss:focal", "recipe": "own_recipe:light"}
"""What of the examples stands for each part."""


class Package:
    """The folder in which jobs find our packages and such functions."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def holds(self, name: str, text: str | None = None) -> OwnCode:
        """Put a function there; `text`: of its file, by default the example's."""
        file = f"{name.partition(':')[0]}.py"
        text = (EXAMPLES / file).read_text() if text is None else text
        code = OwnCode(name=name, sha256=own_code.digest_of({file: text}))
        folder = own_code.place_of(self.root, code.sha256)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
        return code


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """An empty one."""
    monkeypatch.setattr(own_code, "code_root", lambda: tmp_path / "package")
    return Package(tmp_path / "package")
