"""The queue under load, small: the simulation of `benchmarks/queue.py` with the real policies."""

from benchmarks.queue import Simulation


def test_the_queue_ends_soon_after_the_lower_bound_and_shares_evenly() -> None:
    found = Simulation(num_runs=240, num_gpus=24, seed=1).run()
    assert found.makespan < 1.35, "the last long gangs weigh more on a small cluster"
    assert found.longest_wait_h < found.end_h
    assert found.unfair < 0.5
    assert found.restarts
