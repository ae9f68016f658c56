"""Who starts next, and what happens next with one run: truth tables of the pure policies."""

import pytest

from orchestrator.campaign.next_step import BUDGET, EndJob, Facts, Finish, Stay, Train, Validate, next_step
from orchestrator.queue.admission import Waiting, decide, growth, ledger, ordered
from orchestrator.queue.gang_fit import NodeResources, Reservation
from orchestrator.run.job_record import JobKind, JobRecord, JobState
from orchestrator.run.outcome import EndState, Outcome
from trainers.contract.errors import DataError
from trainers.contract.requests import StopRequest
from trainers.contract.run_spec import WorkerSpec
from trainers.contract.states import RunState

GPU, TWO_GPUS, FOUR_GPUS = (WorkerSpec(count=n, gpus=1, cpus=4) for n in (1, 2, 4))
CPU, TWO_CPUS = (WorkerSpec(count=n, gpus=0, cpus=1) for n in (1, 2))


def node(name: str = "n1", *, cpus: float = 16, gpus: float = 2, free_gpus: float | None = None) -> NodeResources:
    total = {"CPU": cpus, "GPU": gpus}
    return NodeResources(name, total, {**total, "GPU": gpus if free_gpus is None else free_gpus})


def waits(
    key: str, workers: WorkerSpec = GPU, *, since: float = 0, position: int = 0, campaign: str = "c", resuming: bool = False
) -> Waiting:
    return Waiting(
        run_key=key, address=f"1/x/t/{key}", campaign=campaign, workers=workers, since_unix=since, position=position, is_resuming=resuming
    )


def queue(*workers: WorkerSpec) -> list[Waiting]:
    return [waits(f"r{i}", w, position=i) for i, w in enumerate(workers)]


def started(waiting: list[Waiting], nodes: list[NodeResources], reserved: list[Reservation] | None = None) -> tuple[str, ...]:
    return decide(waiting, nodes, reserved or [], [w.run_key for w in waiting]).start


def test_first_in_first_out_until_the_cluster_is_full() -> None:
    assert started(queue(GPU, GPU, GPU), [node(gpus=2)]) == ("r0", "r1")


def test_a_gang_starts_whole_or_not_at_all() -> None:
    assert started(queue(TWO_GPUS), [node(gpus=2)], [Reservation("other", GPU)]) == ()


def test_a_large_gang_at_the_front_holds_back_small_ones_that_would_fit() -> None:
    decision = decide(queue(TWO_GPUS, GPU), [node(gpus=2)], [Reservation("other", GPU)], ["r0", "r1"])
    assert decision.start == ()
    assert "1/x/t/r0" in decision.because["r1"]
    assert "2 workers" in decision.because["r0"]


def test_a_gang_that_no_node_can_ever_hold_holds_nobody_back() -> None:
    assert started(queue(FOUR_GPUS, GPU), [node(gpus=2)]) == ("r1",)


def test_a_gang_may_spread_over_nodes() -> None:
    assert started(queue(FOUR_GPUS), [node("a"), node("b")]) == ("r0",)


def test_a_placed_reservation_is_not_counted_twice() -> None:
    busy = [node(gpus=2, free_gpus=1)]
    assert started(queue(GPU), busy, [Reservation("other", GPU, is_placed=True)]) == ("r0",)
    assert started(queue(GPU), busy, [Reservation("other", GPU, is_placed=False)]) == ()


def test_foreign_work_on_the_cluster_is_respected() -> None:
    assert started(queue(GPU), [node(gpus=2, free_gpus=0)]) == ()


def test_cpu_gangs_need_no_gpu() -> None:
    assert started(queue(TWO_CPUS, CPU), [node(cpus=2, gpus=0)]) == ("r0",)


def test_a_run_that_lost_its_job_goes_before_everything_new() -> None:
    waiting = [waits("old", since=0), waits("lost", since=9, resuming=True)]
    assert started(waiting, [node(gpus=1)]) == ("lost",)


def test_a_resuming_run_starts_inside_its_own_reservation() -> None:
    assert started([waits("lost", TWO_GPUS, resuming=True)], [node(gpus=2)], [Reservation("lost", TWO_GPUS)]) == ("lost",)


def test_another_campaigns_run_keeps_its_place_and_its_room() -> None:
    waiting = [waits("theirs", since=0, campaign="a"), waits("mine", since=5, campaign="b")]
    assert decide(waiting, [node(gpus=1)], [], ["mine"]).start == ()
    assert decide(waiting, [node(gpus=2)], [], ["mine"]).start == ("mine",)


def test_a_run_that_two_campaigns_want_stands_once_at_its_better_place() -> None:
    waiting = [waits("r", since=0, campaign="a"), waits("s", since=1), waits("r", since=2, campaign="b")]
    assert [w.run_key for w in ordered(waiting)] == ["r", "s"]


def job(kind: JobKind = "train", state: JobState = "RUNNING", *, n: int = 1, started: float = 10, code: int | None = None) -> JobRecord:
    return JobRecord(
        submission_id=f"{kind}-r-a{n}",
        kind=kind,
        state=state,
        run_key="r",
        job_number=n,
        reserved=GPU,
        exit_code=code,
        started_unix=started,
    )


def test_the_ledger_holds_one_reservation_per_run_from_training_to_the_end_of_validation() -> None:
    assert [r.run_key for r in ledger([job(), job("validate")], (), ())] == ["r"]
    assert ledger([job(state="SUCCEEDED")], (), ()) == []
    assert ledger([job(state="SUCCEEDED")], (), [Reservation("r", GPU)]) == [Reservation("r", GPU)]
    assert ledger([job()], {"r"}, ()) == [Reservation("r", GPU, is_placed=True)]


ELASTIC = WorkerSpec(min=1, max=3, gpus=1, cpus=4)


def test_an_elastic_run_starts_with_its_fewest_and_others_start_beside_it() -> None:
    assert started(queue(ELASTIC, GPU, GPU), [node(gpus=2)]) == ("r0", "r1")


def held_by(key: str, size: int) -> Reservation:
    return Reservation(key, ELASTIC, is_placed=True, size=size)


def test_an_elastic_run_grows_into_what_is_free() -> None:
    assert growth({"e": 1}, [], [node(gpus=2, free_gpus=1)], [held_by("e", 1)]) == {"e": 2}
    assert growth({"e": 1}, [], [node(cpus=32, gpus=8, free_gpus=7)], [held_by("e", 1)]) == {"e": 3}
    assert growth({"e": 2}, [], [node(gpus=2, free_gpus=0)], [held_by("e", 2)]) == {"e": 2}


def test_no_elastic_run_grows_while_another_waits_that_the_cluster_can_hold() -> None:
    nodes, reserved = [node(gpus=2, free_gpus=1)], [held_by("e", 2)]  # the second was granted and not taken yet
    assert growth({"e": 1}, [waits("w", TWO_GPUS)], nodes, reserved) == {"e": 1}
    assert growth({"e": 1}, [waits("w", FOUR_GPUS)], nodes, reserved) == {"e": 2}


def test_what_one_elastic_run_may_take_is_not_offered_to_the_next() -> None:
    nodes = [node(cpus=16, gpus=4, free_gpus=2)]
    assert growth({"a": 1, "b": 1}, [], nodes, [held_by("a", 1), held_by("b", 1)]) == {"a": 3, "b": 1}


def test_growth_respects_runs_that_are_about_to_start_and_those_that_validate() -> None:
    nodes = [node(gpus=2, free_gpus=1)]
    assert growth({"e": 1}, [], nodes, [held_by("e", 1), Reservation("new", GPU)]) == {"e": 1}
    assert growth({"e": 1}, [], nodes, [held_by("e", 1), Reservation("validating", GPU, is_placed=True)]) == {"e": 1}


def test_the_ledger_holds_of_an_elastic_run_what_it_has_or_may_take() -> None:
    training = job().model_copy(update={"reserved": ELASTIC})
    assert [r.bundles for r in ledger([training], {"r"}, (), {"r": 3})] == [3]
    assert [r.bundles for r in ledger([training], {"r"}, ())] == [1]
    validating = job("validate").model_copy(update={"reserved": ELASTIC})
    assert [r.bundles for r in ledger([validating], (), (), {"r": 3})] == [1]
    assert [r.bundles for r in ledger([job()], {"r"}, (), {"r": 3})] == [1]


def ended(state: EndState, of: str = "training", fencing_token: int = 1) -> Outcome:
    return Outcome(job=of, state=state, fencing_token=fencing_token, message="said so")


KILLED = job(state="FAILED", code=137)
LATER, NOW = StopRequest(is_now=False), StopRequest(is_now=True)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(), Train()),
        (Facts(jobs=(job(),)), Stay(RunState.RUNNING)),
        (Facts(jobs=(job(),), is_progress_fresh=False), Stay(RunState.RECOVERING)),
        (Facts(jobs=(job(state="PENDING"),)), Stay(RunState.RUNNING)),
        (Facts(jobs=(job(), job("validate"))), Stay(RunState.VALIDATING)),
        (Facts(jobs=(job(state="SUCCEEDED"), job("validate"))), Stay(RunState.VALIDATING)),
        (Facts(jobs=(job(state="SUCCEEDED"),), outcome=ended("TRAINED")), Validate(1)),
        (Facts(outcome=ended("TRAINED", fencing_token=4)), Validate(4)),
        (Facts(jobs=(job("validate", "FAILED", n=4),), outcome=ended("TRAINED", fencing_token=4)), Validate(4)),
        (Facts(outcome=ended("SUCCEEDED", "validation")), Finish(RunState.SUCCEEDED)),
        (Facts(jobs=(job("validate"),), outcome=ended("SUCCEEDED", "validation")), Finish(RunState.SUCCEEDED)),  # it only delivers
        (Facts(jobs=(job("validate", n=2),), outcome=ended("SUCCEEDED", "validation")), Stay(RunState.VALIDATING)),
        (Facts(jobs=(job("validate"),), outcome=ended("FAILED_CODE")), Stay(RunState.VALIDATING)),
        (Facts(jobs=(job(),), outcome=ended("TRAINED")), Stay(RunState.RUNNING)),
        (Facts(jobs=(job(),), outcome=ended("SUCCEEDED", "validation")), Finish(RunState.SUCCEEDED)),
        (Facts(jobs=(job(),), outcome=ended("FAILED_CONFIG")), Finish(RunState.FAILED_CONFIG, "said so")),
        (Facts(outcome=ended("STOPPED")), Finish(RunState.STOPPED, "said so")),
        (Facts(outcome=ended("FAILED_CONFIG")), Finish(RunState.FAILED_CONFIG, "said so")),
        (Facts(outcome=ended("FAILED_CODE")), Finish(RunState.FAILED_CODE, "said so")),
        (Facts(jobs=(KILLED,), outcome=ended("FAILED_CODE")), Finish(RunState.FAILED_CODE, "said so")),
    ],
)
def test_next_step(facts: Facts, expected: object) -> None:
    assert next_step(facts, RunState.RUNNING) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(stop=LATER), RunState.STOPPED),
        (Facts(jobs=(job(),), stop=LATER), RunState.RUNNING),
        (Facts(jobs=(KILLED,), stop=LATER), RunState.STOPPED),
        (Facts(outcome=ended("TRAINED"), stop=NOW), RunState.STOPPED),
        (Facts(outcome=ended("FAILED_CODE"), stop=NOW), RunState.STOPPED),
        (Facts(outcome=ended("SUCCEEDED", "validation"), stop=NOW), RunState.SUCCEEDED),
    ],
)
def test_a_wish_to_stop(facts: Facts, expected: RunState) -> None:
    step = next_step(facts, RunState.RUNNING)
    assert isinstance(step, Stay | Finish)
    assert step.state is expected


def test_a_stop_at_once_ends_a_validation_and_a_gentle_one_leaves_it_the_cases_in_work() -> None:
    validating = job("validate")
    assert next_step(Facts(jobs=(validating,), stop=NOW), RunState.VALIDATING) == EndJob(validating, RunState.VALIDATING)
    assert next_step(Facts(jobs=(validating,), stop=LATER), RunState.VALIDATING) == Stay(RunState.VALIDATING)


@pytest.mark.parametrize("stop", [LATER, NOW])
def test_a_stop_ends_a_run_whose_validation_has_no_job(stop: StopRequest) -> None:
    for outcome in (ended("TRAINED"), ended("STOPPED", "validation"), ended("FAILED_CLUSTER", "validation")):
        end = next_step(Facts(outcome=outcome, stop=stop), RunState.VALIDATING)
        assert isinstance(end, Finish)
        assert end.reason.startswith("trained; validation stopped; submit again or")
    failed = Facts(outcome=ended("FAILED_CODE", "validation"), stop=LATER)
    assert next_step(failed, RunState.VALIDATING) == Finish(RunState.FAILED_CODE, "said so")


def test_a_gentle_stop_ends_a_training_without_workers() -> None:
    never_began = Facts(jobs=(job(),), stop=LATER, has_begun=False)
    assert next_step(never_began, RunState.RUNNING) == EndJob(job(), RunState.RUNNING)
    lost_them = Facts(jobs=(job(),), stop=LATER, is_progress_fresh=False)
    assert next_step(lost_them, RunState.RUNNING) == EndJob(job(), RunState.RECOVERING)


def test_a_run_whose_folder_is_another_runs_now_ends_without_touching_it() -> None:
    assert next_step(Facts(jobs=(job(),), reassigned_to="k2"), RunState.RUNNING) == EndJob(job(), RunState.RUNNING)
    end = next_step(Facts(jobs=(job(state="STOPPED"),), reassigned_to="k2"), RunState.RUNNING)
    assert isinstance(end, Finish)
    assert end.state is RunState.STOPPED
    assert end.reason.startswith("its folder belongs to the run k2 now. Submit it again")


def test_a_job_that_finds_its_folder_or_dataset_unfit_is_not_tried_again() -> None:
    log = "Job entrypoint command failed, last logs:\nstarts\ndataset: /d/dataset.json is refused to this user. Mend its rights.\n"
    unfit = job(state="FAILED", code=DataError.exit_code).model_copy(update={"message": log})
    end = next_step(Facts(jobs=(unfit,)), RunState.RUNNING)
    assert isinstance(end, Finish)
    assert end.state is RunState.FAILED_CONFIG
    assert end.reason.endswith("could not begin: dataset: /d/dataset.json is refused to this user. Mend its rights.")
    assert end.evidence == log


def test_a_stop_at_once_ends_the_job() -> None:
    assert next_step(Facts(jobs=(job(),), stop=NOW), RunState.RUNNING) == EndJob(job(), RunState.RUNNING)


def test_a_killed_job_is_tried_again_until_the_budget_is_spent() -> None:
    lost = [job(state="FAILED", n=n, code=137) for n in range(1, BUDGET + 1)]
    again = next_step(Facts(jobs=tuple(lost[:-1])), RunState.RUNNING)
    assert isinstance(again, Train)
    assert "signal 9" in again.reason
    end = next_step(Facts(jobs=tuple(lost)), RunState.RUNNING)
    assert isinstance(end, Finish)
    assert end.state is RunState.FAILED_CLUSTER


def test_the_code_is_blamed_when_the_last_job_ended_by_itself_with_an_error() -> None:
    lost = tuple(job(state="FAILED", n=n, code=1) for n in range(1, BUDGET + 1))
    end = next_step(Facts(jobs=lost), RunState.RUNNING)
    assert isinstance(end, Finish)
    assert end.state is RunState.FAILED_CODE


def test_a_failure_of_the_cluster_is_tried_again_and_reported_in_its_own_words() -> None:
    lost = tuple(job(state="FAILED", n=n, code=1) for n in range(1, BUDGET + 1))
    assert isinstance(next_step(Facts(jobs=lost[:1], outcome=ended("FAILED_CLUSTER")), RunState.RUNNING), Train)
    end = next_step(Facts(jobs=lost, outcome=ended("FAILED_CLUSTER")), RunState.RUNNING)
    assert isinstance(end, Finish)
    assert end.state is RunState.FAILED_CLUSTER
    assert "said so" in end.reason


def test_jobs_of_an_earlier_campaign_do_not_count_as_failures() -> None:
    lost = tuple(job(state="FAILED", n=n, code=137) for n in range(1, BUDGET + 1))
    assert next_step(Facts(jobs=lost, earlier=frozenset(j.submission_id for j in lost)), RunState.QUEUED) == Train()


def test_a_job_that_made_progress_begins_the_count_anew() -> None:
    lost = tuple(job(state="FAILED", n=n, code=137) for n in range(1, 20, 2))
    assert isinstance(next_step(Facts(jobs=lost, committed_token=20), RunState.RUNNING), Train)
    few = next_step(Facts(jobs=lost, committed_token=16), RunState.RUNNING)
    assert isinstance(few, Train)
    assert f"({BUDGET - 1} of {BUDGET} jobs lost in a row without progress)" in few.reason
    end = next_step(Facts(jobs=lost, committed_token=14), RunState.RUNNING)
    assert isinstance(end, Finish)
    assert end.state is RunState.FAILED_CLUSTER
    assert f"{BUDGET} jobs in a row were lost without progress" in end.reason
    assert "nnfleet resume" in end.reason


def test_the_order_of_jobs_is_that_of_their_numbers_whatever_the_clocks_say() -> None:
    first, second = job(state="FAILED", n=1, code=137, started=9000), job(state="STOPPED", n=2, started=5)
    end = next_step(Facts(jobs=(second, first)), RunState.RUNNING)
    assert isinstance(end, Finish)
    assert end.state is RunState.STOPPED


def test_a_validation_that_finishes_cases_is_tried_again() -> None:
    lost = tuple(
        job("validate", "FAILED", n=3, code=137).model_copy(update={"submission_id": f"validate-r-a3{f'-r{n}' if n else ''}"})
        for n in range(12)
    )
    trained = ended("TRAINED", fencing_token=3)
    assert next_step(Facts(jobs=lost, outcome=trained, has_validated=frozenset({"validate-r-a3-r9"})), RunState.VALIDATING) == Validate(3)
    end = next_step(Facts(jobs=lost, outcome=trained, has_validated=frozenset({"validate-r-a3-r8"})), RunState.VALIDATING)
    assert isinstance(end, Finish)


@pytest.mark.parametrize(("code", "state"), [(1, RunState.FAILED_CODE), (5, RunState.FAILED_CLUSTER), (11, RunState.FAILED_CLUSTER)])
def test_jobs_whose_end_no_disk_took_end_the_run_by_their_exit_codes(code: int, state: RunState) -> None:
    end = next_step(Facts(jobs=tuple(job(state="FAILED", n=n, code=code) for n in range(1, BUDGET + 1))), RunState.RUNNING)
    assert isinstance(end, Finish)
    assert end.state is state


def test_a_job_that_somebody_stopped_is_not_started_again() -> None:
    end = next_step(Facts(jobs=(job(state="STOPPED"),)), RunState.RUNNING)
    assert isinstance(end, Finish)
    assert end.state is RunState.STOPPED


def test_a_superseded_job_does_not_end_the_run() -> None:
    assert next_step(Facts(jobs=(job(state="FAILED", code=1), job(n=2)), outcome=ended("SUPERSEDED")), RunState.RUNNING) == Stay(
        RunState.RUNNING
    )


@pytest.mark.parametrize(
    "outcome", [None, ended("TRAINED", fencing_token=4), ended("STOPPED", fencing_token=4), ended("FAILED_CONFIG", fencing_token=4)]
)
def test_a_run_that_another_cluster_took_over_is_left_to_it(outcome: Outcome | None) -> None:
    facts = Facts(jobs=(job(state="FAILED", code=7),), outcome=outcome, owner="attempt 4 of host-1")
    end = next_step(facts, RunState.RUNNING)
    assert end == Finish(RunState.STOPPED, "taken over by attempt 4 of host-1: it goes on there.", is_elsewhere=True)
    assert next_step(Facts(outcome=ended("SUPERSEDED")), RunState.RUNNING) == Finish(
        RunState.STOPPED, "taken over by another cluster: it goes on there.", is_elsewhere=True
    )


def test_a_validation_has_a_budget_of_its_own() -> None:
    trainings = (job(state="FAILED", code=137), job(state="FAILED", n=2, code=137), job(state="SUCCEEDED", n=3, code=0))
    lost = tuple(job("validate", "FAILED", n=3, code=137) for _ in range(BUDGET))
    trained = ended("TRAINED", fencing_token=3)
    assert next_step(Facts(jobs=(*trainings, *lost[:-1]), outcome=trained), RunState.VALIDATING) == Validate(3)
    end = next_step(Facts(jobs=(*trainings, *lost), outcome=trained), RunState.VALIDATING)
    assert isinstance(end, Finish)
    assert end.state is RunState.FAILED_CLUSTER
