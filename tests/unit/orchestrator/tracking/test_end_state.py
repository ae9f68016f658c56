"""In which state the end of a job leaves its run."""

from typing import get_args

import pytest

from orchestrator.run.outcome import EndState, Outcome
from orchestrator.tracking.end_state import final_state


@pytest.mark.parametrize("state", get_args(EndState))
def test_what_is_no_end_of_a_run_is_published_as_none(state: EndState) -> None:
    outcome = Outcome(job="training", state=state, fencing_token=1, message="")
    assert outcome.is_open is (state in ("TRAINED", "PAUSED"))
    found = final_state(outcome)
    is_end = not outcome.is_open and state != "SUPERSEDED"  # that one goes on under another driver
    assert (found is not None) is is_end
    assert found is None or (found.is_final and found.value == state)
