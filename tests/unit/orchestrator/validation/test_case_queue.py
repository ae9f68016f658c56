"""Which case is tried again, who is to blame, and how a validation ends by it: the policy alone."""

from orchestrator.validation.case_queue import LEAST_LIMIT_S, CaseFailure, CaseQueue, case_limit_s, end_of, failure_message

DATA = CaseFailure("data", "DataError: not readable", "node 1")


def code(place: str = "node 1", reason: str = "RuntimeError") -> CaseFailure:
    return CaseFailure("code", reason, place)


def test_a_failed_case_is_tried_again_last_and_then_given_up() -> None:
    queue = CaseQueue.of(["a", "b"], tries=2)
    assert queue.next() == "a"
    assert queue.failed("a", code(reason="first"))
    assert [queue.next(), queue.next(), queue.next()] == ["b", "a", None]
    assert queue.exhausted == {}
    assert not queue.failed("a", code(reason="second"))
    assert queue.exhausted["a"].reason == "second"
    assert queue.next() is None


def test_a_case_whose_files_are_at_fault_is_not_tried_again() -> None:
    queue = CaseQueue.of(["a"], tries=3)
    assert queue.next() == "a"
    assert not queue.failed("a", DATA)
    assert queue.exhausted == {"a": DATA}


def test_an_unhealthy_place_burns_no_tries() -> None:
    """Node 2 fails whatever it gets, fast; node 1 works on one long case. Every case is done in the end, by node 1."""
    queue = CaseQueue.of([*"abcde"], tries=2)
    assert queue.next() == "a"  # node 1 works on it
    for case in "bcdebcde":
        assert queue.next() == case
        queue.failed(case, code("node 2"))
    assert set(queue.exhausted) == set("bcde")
    assert not queue.is_unhealthy("node 2")  # nobody has shown yet that it can be done
    queue.done("node 1")
    assert queue.is_unhealthy("node 2")
    assert queue.exhausted == {}
    done = []
    while (following := queue.next()) is not None:
        done.append(following)
        queue.done("node 1")
    assert done == [*"bcde"]


def test_one_bad_case_makes_no_place_unhealthy() -> None:
    queue = CaseQueue.of(["a", "b"], tries=3)
    queue.done("node 1")
    for _ in range(3):
        queue.next()
        queue.failed("a", code("node 2"))
    assert not queue.is_unhealthy("node 2")
    assert set(queue.exhausted) == {"a"}


def test_bad_data_make_no_place_unhealthy() -> None:
    queue = CaseQueue.of(["a", "b", "c"], tries=3)
    queue.done("node 1")
    for case in "abc":
        queue.failed(case, CaseFailure("data", "DataError", "node 2"))
    assert not queue.is_unhealthy("node 2")


def test_a_pardoned_place_that_goes_on_failing_ends_the_case() -> None:
    """Node 1 has done a case and is gone; node 2 is all there is: the rest fails there until its retries are exhausted."""
    queue = CaseQueue.of(["a", "b"], tries=2)
    queue.done("node 1")
    tries = 0
    while (case := queue.next()) is not None:
        if queue.is_unhealthy("node 2"):
            queue.reinstate("node 2")
        queue.failed(case, code("node 2"))
        tries += 1
    assert set(queue.exhausted) == {"a", "b"}
    assert tries <= 8


def test_a_case_that_is_well_elsewhere_makes_a_place_well_again() -> None:
    queue = CaseQueue.of([], tries=3)
    queue.done("node 1")
    queue.failed("a", code("node 2"))
    queue.failed("b", code("node 2"))
    assert queue.is_unhealthy("node 2")
    queue.done("node 2")
    assert not queue.is_unhealthy("node 2")


def test_bad_data_outweigh_and_lost_workers_alone_are_the_clusters_fault() -> None:
    lost = CaseFailure("lost", "its worker died")
    assert end_of([[lost, lost], [DATA]]) == "FAILED_CONFIG"
    assert end_of([[lost, code()]]) == "FAILED_CODE"
    assert end_of([[lost], [lost, lost]]) == "FAILED_CLUSTER"


def test_the_message_names_every_case_and_how_often_it_was_tried() -> None:
    message = failure_message("best", {"b": [code(reason="x"), code(reason="y.")], "a": [DATA]}, 5)
    assert "2 of 5 cases failed: a (tried once): DataError: not readable; b (tried 2 times): y." in message


def test_the_time_limit_follows_the_slowest_case() -> None:
    assert case_limit_s(0.0) == LEAST_LIMIT_S
    assert case_limit_s(3600.0) == 36000.0
