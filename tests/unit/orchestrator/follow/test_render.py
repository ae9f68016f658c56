from pathlib import Path

from orchestrator.campaign.events import CampaignLog, StatusChanged
from orchestrator.follow.render import changes
from orchestrator.run.events import line_of
from orchestrator.run.status import RunStatus


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
