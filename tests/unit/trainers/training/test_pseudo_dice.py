"""Counts, Dice and the best policy, beside nnU-Net's own and by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.nnunet_beside import KINDS, as_target, labels_for, nnunet_counts
from trainers.contract.commits import BestRecord
from trainers.training.pseudo_dice import batch_counts, dice_per_class, gather_epoch, mean_dice, updated, zero_counts


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", [(17, 16), (9, 11, 10)])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_exactly_those_of_nnunet(kind: str, shape: tuple[int, ...], half: bool) -> None:
    labels = labels_for(kind)
    torch.manual_seed(3)
    logits = torch.randn(3, labels.num_heads, *shape)
    logits[0, :, :4] = 0  # ties: the first label wins; probability 0.5 is no region
    logits[1, :, :4] = 1e-9  # above 0, but its sigmoid is 0.5 in float32
    logits = logits.half() if half else logits
    target = as_target(torch.randint(0, max(labels.values) + 1, (3, 1, *shape), dtype=torch.int16), labels)
    before = target.clone()
    counts = batch_counts(logits, target, labels)
    assert counts.dtype == torch.int64
    assert counts.shape == (3, len(labels.foreground))
    np.testing.assert_array_equal(counts.numpy(), nnunet_counts(logits, target, labels))
    assert torch.equal(target, before)


@pytest.mark.parametrize("places", [(0,), (1,), (1, 2), (0, 1, 2)])
def test_counts_of_logits_that_are_no_numbers_are_those_of_nnunet(places: tuple[int, ...]) -> None:
    labels = labels_for("ignore")
    torch.manual_seed(3)
    logits = torch.randn(2, 3, 8, 8, 8)
    logits[:, list(places), 2:5] = torch.nan
    logits[:, 1, 6] = torch.inf
    target = torch.randint(0, 4, (2, 1, 8, 8, 8), dtype=torch.int16)
    np.testing.assert_array_equal(batch_counts(logits, target, labels).numpy(), nnunet_counts(logits, target, labels))


@pytest.mark.parametrize("kind", ["regions", "regions_ignore"])
def test_counts_of_bool_regions(kind: str) -> None:
    labels = labels_for(kind)
    torch.manual_seed(3)
    logits = torch.randn(2, labels.num_heads, 8, 8)
    target = as_target(torch.randint(0, max(labels.values) + 1, (2, 1, 8, 8), dtype=torch.int16), labels)
    assert torch.equal(batch_counts(logits, target.bool(), labels), batch_counts(logits, target, labels))


def test_counts_worked_by_hand() -> None:
    labels = labels_for("ignore")  # background, organ, lesion, ignore = 3
    predicted = torch.tensor([[0, 1, 1], [2, 2, 1]])
    target = torch.tensor([[[[0, 1, 2], [2, 3, 0]]]], dtype=torch.int16)
    logits = torch.nn.functional.one_hot(predicted, 3).permute(2, 0, 1)[None].float()
    # organ: right at (0,1); wrong at (0,2) and (1,2). lesion: right at (1,0); missed at (0,2); (1,1) is ignored.
    assert batch_counts(logits, target, labels).tolist() == [[1, 1], [2, 0], [0, 1]]


def test_dice_worked_by_hand() -> None:
    counts = torch.tensor([[1, 1, 0], [2, 0, 0], [0, 1, 0]])
    per_class = dice_per_class(counts)
    assert per_class[:2] == (2 / 4, 2 / 3)
    assert math.isnan(per_class[2])  # neither there nor predicted
    assert mean_dice(per_class) == pytest.approx(7 / 12)
    assert math.isnan(mean_dice((math.nan, math.nan)))


def test_counting_starts_at_zero_and_gathering_alone_changes_no_value() -> None:
    labels = labels_for("labels")
    counts = zero_counts(labels, torch.device("cpu"))
    assert counts.tolist() == [[0, 0], [0, 0], [0, 0]]
    counts += torch.tensor([[2**40 + 1, 2], [3, 4], [5, 6]])
    gathered, sums = gather_epoch(counts, torch.tensor([0.5, 1.5]))
    assert gathered.tolist() == [[2**40 + 1, 2], [3, 4], [5, 6]]
    assert sums.tolist() == [0.5, 1.5]


def _course(series: list[float]) -> tuple[list[float | None], list[int], BestRecord]:
    best, emas, best_epochs = BestRecord(), [], []
    for epoch, dice in enumerate(series):
        best, is_best = updated(best, dice, epoch)
        emas.append(best.ema)
        if is_best:
            best_epochs.append(epoch)
    return emas, best_epochs, best


def test_an_epoch_without_foreground_leaves_the_average_and_is_counted() -> None:
    # nnU-Net: 0.1, 0.14, nan, nan, nan, and no best after epoch 1. Here: 0.1; 0.9*0.1 + 0.1*0.5 = 0.14; unchanged;
    # 0.9*0.14 + 0.1*0.8 = 0.206; 0.9*0.206 + 0.1*0.9 = 0.2754
    emas, best_epochs, best = _course([0.1, 0.5, math.nan, 0.8, 0.9])
    assert emas == pytest.approx([0.1, 0.14, 0.14, 0.206, 0.2754], abs=1e-12)
    assert best_epochs == [0, 1, 3, 4]
    assert (best.skipped, best.best_epoch, best.score) == (1, 4, best.ema)


def test_a_first_epoch_without_foreground_is_no_best() -> None:
    emas, best_epochs, best = _course([math.nan, math.nan, 0.3])
    assert emas == [None, None, 0.3]
    assert best_epochs == [2]
    assert best.skipped == 2


def test_best_is_strictly_greater_and_the_score_survives_a_fall() -> None:
    # 0.5; 0.5 again; 0.9*0.5 + 0 = 0.45; 0.9*0.45 + 0.1*0.9 = 0.495 rises but stays below 0.5; 0.9*0.495 + 0.1*0.9 = 0.5355
    emas, best_epochs, _ = _course([0.5, 0.5, 0.0, 0.9])
    assert emas == pytest.approx([0.5, 0.5, 0.45, 0.495], abs=1e-12)
    assert best_epochs == [0]
    assert _course([0.5, 0.5, 0.0, 0.9, 0.9])[1] == [0, 4]
    best = _course([0.5, 0.5, 0.0, 0.9])[2]
    assert (best.score, best.best_epoch) == (0.5, 0)


def test_zero_dice_is_a_value() -> None:
    assert _course([0.0, 0.0])[1] == [0]


def test_the_average_is_that_of_nnunets_logger(tmp_path: Path) -> None:
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    series = np.random.default_rng(0).uniform(size=50).tolist()
    logger = MetaLogger(str(tmp_path), resume=False)
    for epoch, dice in enumerate(series):
        logger.log("mean_fg_dice", dice, epoch)
    assert _course(series)[0] == pytest.approx(logger.get_value("ema_fg_dice", step=None), rel=1e-12)
