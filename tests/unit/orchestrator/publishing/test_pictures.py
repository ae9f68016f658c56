"""Pictures are real PNG files with what they promise, for the awkward inputs too."""

import io
import sys

import numpy as np
import pytest

from orchestrator.publishing.pictures import busiest_slice, overlay, progress_png
from tests.fake_run import epoch_row


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(io.BytesIO(png), format="png"))


@pytest.mark.parametrize("epochs", [0, 1, 3, 60])
def test_progress_is_drawn_for_any_number_of_epochs(epochs: int) -> None:
    history = [epoch_row(n, None if n == 0 else 0.5 + 0.001 * n, fencing_token=1 + (n > 30)) for n in range(epochs)]
    picture = pixels(progress_png(history))
    assert picture.shape[0] > 500
    assert picture.std() > 0


def test_progress_bears_values_that_are_not_numbers() -> None:
    row = epoch_row(0, None).model_copy(update={"val_loss": float("nan"), "pseudo_dice_mean": float("nan")})
    assert progress_png([row]).startswith(b"\x89PNG")


def test_drawing_leaves_pyplot_alone() -> None:
    loaded_before = "matplotlib.pyplot" in sys.modules
    progress_png([epoch_row(0)])
    assert ("matplotlib.pyplot" in sys.modules) == loaded_before


def test_overlay_shows_the_slice_with_most_foreground_in_both() -> None:
    truth, prediction = np.zeros((2, 5, 8, 8), np.uint8)
    truth[1, :3, :3] = 1
    prediction[3, :4, :4] = 2
    assert busiest_slice(truth, prediction) == 3
    assert busiest_slice(truth * 0, prediction * 0) == 2


def test_overlay_draws_truth_and_prediction_in_the_color_of_their_class() -> None:
    image = np.zeros((3, 40, 60), np.float32)
    truth = np.zeros(image.shape, np.int16)
    truth[1, 10:30, 10:30] = 1
    plain = pixels(overlay(image, truth * 0, truth * 0, ("liver",), "case", (1, 1, 1)))
    with_truth = pixels(overlay(image, truth, truth * 0, ("liver",), "case", (1, 1, 1)))
    with_both = pixels(overlay(image, truth, np.roll(truth, 8, 2), ("liver",), "case", (1, 1, 1)))

    def red(picture: np.ndarray) -> int:
        return int(((picture[..., 0] > 0.7) & (picture[..., 1] < 0.4) & (picture[..., 2] < 0.5)).sum())

    assert red(plain) == 0
    assert 0 < red(with_truth) < red(with_both)


@pytest.mark.parametrize("shape", [(40, 60), (4, 200, 9)])
def test_overlay_bears_two_dimensions_narrow_images_and_foreground_at_the_edge(shape: tuple[int, ...]) -> None:
    everywhere = np.ones(shape, np.uint8)
    names = tuple(f"class {n}" for n in range(30))
    assert overlay(np.ones(shape), everywhere, everywhere * 2, names, "case", (5, 1, 0.5)[-len(shape) :]).startswith(b"\x89PNG")
