"""What two workers gain over one: the ratios, and a step of each side."""

import statistics

from benchmarks.workers import Measured, Spent, batch_of, model_of, row, spec_of, timed
from trainers.contract.split_batch import rank_positions
from trainers.training.assemble import assemble, warm_up
from trainers.training.world import current_world


def test_twice_as_fast_is_a_ratio_of_two_whatever_the_wall_clock_shows() -> None:
    alone, together = [Spent(4.0, 2.0), Spent(6.0, 2.0)], [Spent(4.0, 1.0), Spent(3.0, 1.0)]
    found = Measured(2, 10, alone, together, [Spent(0.002, 0.001)] * 2)
    assert found.ratios("cpu_s") == [2.0, 2.0]
    assert found.ratios("wall_s") == [1.0, 2.0]
    cells = row("tiny", found).split(" | ")
    assert cells[1:3] == [f"{20 / 5.0:.1f}", f"{20 / 3.5:.1f}"]  # 10 steps of two samples, medians of wall seconds
    assert cells[4] == "2.00 (2.00 to 2.00)"
    assert cells[-1] == "2.0 (1.0) |"


def test_a_worker_takes_its_share_of_the_batch_and_spends_time_on_it() -> None:
    model = model_of("tiny")
    shares = [batch_of(model, rank_positions(2, 2, rank)) for rank in range(2)]
    assert [len(share.images) for share in shares] == [1, 1]
    assert (shares[0].images != shares[1].images).any()
    world = current_world(0)
    learner = assemble(spec_of("tiny"), model, world, 1)
    warm_up(learner, model, world)
    spent = [timed(learner, batch_of(model, range(2)), "steps", 1) for _ in range(3)]
    assert statistics.median(s.cpu_s for s in spent) > 0
