"""Epochs out of nnU-Net's lists and out of the text of its log."""

import math
from datetime import datetime

import pytest

from orchestrator.imported.curves import history_of_checkpoint, history_of_logs
from tests.nnunet_folder import logging_of

LOG = """\

#######################################################################
Please cite the following paper when using nnU-Net:
2026-03-01 10:00:00.100000:  
2026-03-01 10:00:00.100000: Epoch 0 
2026-03-01 10:00:00.200000: Current learning rate: 0.01 
2026-03-01 10:00:08.000000: train_loss 0.25 
2026-03-01 10:00:08.000000: val_loss -0.5 
2026-03-01 10:00:08.000000: Pseudo dice [np.float32(0.5), nan] 
2026-03-01 10:00:08.100000: Epoch time: 8.0 s 
2026-03-01 10:00:08.200000: Yayy! New best EMA pseudo Dice: 0.5 
2026-03-01 10:00:09.000000: Epoch 1 
2026-03-01 10:00:16.000000: train_loss 9.9 
"""
CONTINUED = """\
2026-03-02 10:00:00.000000: Epoch 1 
2026-03-02 10:00:01.000000: Current learning rate: 0.00536 
2026-03-02 10:00:02.000000: train_loss -0.75 
2026-03-02 10:00:03.000000: val_loss -1e-05 
2026-03-02 10:00:04.000000: Pseudo dice [0.5, 0.7] 
2026-03-02 10:00:05.000000: Epoch time: 5.0 s 
"""


def test_the_lists_of_a_checkpoint_are_epochs() -> None:
    first, second = history_of_checkpoint(logging_of())
    assert (first.epoch, first.train_loss, first.learning_rate, first.epoch_s) == (0, 0.25, 0.01, 8.0)
    assert first.pseudo_dice[0] == 0.5
    assert math.isnan(first.pseudo_dice[1])
    assert second.pseudo_dice_mean == pytest.approx(0.6)
    assert second.ema_pseudo_dice == pytest.approx(0.51)


def test_what_nnunet_does_not_record_is_not_known() -> None:
    row = history_of_checkpoint(logging_of())[0]
    assert row.world_size == 0
    assert all(math.isnan(value) for value in (row.train_s, row.wait_data_s, row.samples_per_s, row.gpu_memory_gib))


def test_a_smoothed_dice_that_is_no_number_is_none() -> None:
    lists = logging_of() | {"ema_fg_dice": [math.nan, math.nan]}
    assert [row.ema_pseudo_dice for row in history_of_checkpoint(lists)] == [None, None]


def test_a_log_that_was_continued_is_one_history() -> None:
    first, second = history_of_logs([CONTINUED, LOG])
    assert (first.train_loss, first.val_loss, first.learning_rate, first.pseudo_dice_mean) == (0.25, -0.5, 0.01, 0.5)
    assert first.ended_unix == datetime.fromisoformat("2026-03-01 10:00:08.1").timestamp()
    assert first.epoch_s == pytest.approx(8.0)
    assert (second.train_loss, second.val_loss, second.pseudo_dice) == (-0.75, -1e-5, (0.5, 0.7))
    assert second.ema_pseudo_dice == pytest.approx(0.9 * 0.5 + 0.1 * 0.6)


def test_an_epoch_that_was_cut_off_is_none() -> None:
    assert [row.epoch for row in history_of_logs([LOG])] == [0]


def test_nothing_behind_a_gap_is_taken() -> None:
    assert history_of_logs([CONTINUED]) == ()


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ([], "no lists"),
        ({}, "mean_fg_dice"),
        (logging_of() | {"lrs": ["fast"]}, "'fast' where an epoch has a number"),
        (logging_of() | {"dice_per_class_or_region": [1, 2]}, "no list of lists"),
    ],
)
def test_lists_that_are_none_of_nnunets_are_refused(lists: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        history_of_checkpoint(lists)
