from pathlib import Path
from typing import Literal

import pytest

from orchestrator.campaign.events import CampaignLog, StatusChanged
from orchestrator.follow.render import Reading, changes, with_reading
from orchestrator.run.events import line_of
from orchestrator.run.status import RunStatus
from tests.fake_run import FakeRun
from trainers.contract.run_spec import OwnCode, OwnParts


def test_whoever_reads_the_changes_has_the_status_also_where_a_text_is_empty_again() -> None:
    first = RunStatus(run_key="k", address="1/2d/t/0", campaign="c", epochs=4, run_folder=Path("/r"))
    starved = first.model_copy(update={"limited_by": "disk", "limit_advice": "a faster disk", "early_end": "after 2 of 4 epochs"})
    fine = starved.model_copy(update={"limited_by": "GPU", "limit_advice": "", "early_end": ""})
    log, before = CampaignLog(), None
    text = ""
    for status in (first, starved, fine):
        text += f"{line_of(StatusChanged(status=changes(before, status)))}\n"
        assert log.update(text).statuses == {"k": status}
        before = status
    assert changes(fine, fine) == {"run_key": "k"}


def test_a_status_has_the_users_code_and_when_the_first_epoch_began(tmp_path: Path) -> None:
    own = OwnParts(trainer=OwnCode(name="mine:Mine", sha256="1" * 64))
    run = FakeRun(tmp_path, own=own)
    before = RunStatus(run_key="k", address="1/2d/t/0", campaign="c", epochs=4, run_folder=Path("/r"))
    waits = with_reading(before, run.spec, Reading())
    assert (waits.own_code, waits.begun_unix) == ("trainer mine:Mine (SHA-256 111111111111...)", 0.0)
    assert with_reading(before, run.spec, Reading(begun_unix=1.7e9)).begun_unix == 1.7e9
    assert not {"own_code", "begun_unix"} & before.model_dump().keys()


@pytest.mark.parametrize(("fold", "of"), [("all", "training cases"), (0, None)])
def test_json_names_the_cases_of_the_full_dice_of_fold_all(tmp_path: Path, fold: int | Literal["all"], of: str | None) -> None:
    spec = FakeRun(tmp_path).spec.model_copy(update={"fold": fold})
    status = RunStatus(run_key=spec.run_key, address=spec.address, campaign="c", epochs=4, run_folder=spec.run_folder)
    validated = with_reading(status, spec, Reading(full_dice={"final": 0.95}))
    assert validated.model_dump(mode="json").get("full_dice_of") == of
    assert "full_dice_of" not in with_reading(status, spec, Reading()).model_dump()
