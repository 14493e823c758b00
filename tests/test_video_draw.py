from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trecvit.errors import InputError
from trecvit.video.draw import draw_predictions, fit_for_display

ROWS = [("petting cat", 0.7), ("a label that is far too long to fit onto any panel whatever its width may be", 0.2)]
SIZES = [(90, 160), (160, 160), (224, 224), (360, 640), (640, 360), (1080, 1920)]


def grey(height_px: int, width_px: int) -> np.ndarray:
    return np.full((height_px, width_px, 3), 128, np.uint8)


def panel(image: np.ndarray, drawn: np.ndarray) -> tuple[slice, slice]:
    """Bounding box of the drawn pixels."""
    rows, columns = np.nonzero((image != drawn).any(axis=2))
    return slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)


@pytest.mark.parametrize(("height_px", "width_px"), SIZES)
def test_a_dark_panel_with_bright_words_lies_inside_the_frame(height_px: int, width_px: int) -> None:
    image = grey(height_px, width_px)
    drawn = draw_predictions(image, ROWS, title="Title", footer="frame 1")
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (image == 128).all()
    rows, columns = panel(image, drawn)
    assert 0 < rows.start < rows.stop < height_px
    assert 0 < columns.start < columns.stop < width_px
    inside = drawn[rows, columns]
    assert np.median(inside) < 80
    assert inside.max() > 240
    # Words and bars keep clear of the rim.
    assert inside[:, -1].max() <= 128
    assert inside[:, 0].max() <= 128


def test_the_panel_is_translucent() -> None:
    dark, light = (draw_predictions(np.full((360, 640, 3), level, np.uint8), ROWS) for level in (0, 255))
    box = panel(np.zeros_like(dark), dark)
    assert 20 < np.median(light[box].astype(int) - dark[box]) < 120


def test_bars_are_as_long_as_their_probability() -> None:
    def blue_px(probability: float) -> int:
        drawn = draw_predictions(grey(360, 640), [("", probability)]).astype(int)
        return int(((drawn[..., 2] > 200) & (drawn[..., 0] < 100)).any(axis=0).sum())

    full = blue_px(1.0)
    assert full > 200
    assert blue_px(0.5) == pytest.approx(full / 2, abs=3)
    assert 1 <= blue_px(0.0) <= 8


def test_rows_that_do_not_fit_are_left_out() -> None:
    few = draw_predictions(grey(90, 160), ROWS)
    many = draw_predictions(grey(90, 160), ROWS * 50)
    assert few.shape == many.shape
    assert (many[-1] == 128).all()
    assert (many[0] == 128).all()


def test_more_words_make_a_taller_panel() -> None:
    image = grey(360, 640)
    heights = [
        panel(image, draw_predictions(image, rows, title=title, footer=footer))[0].start
        for rows, title, footer in [(ROWS[:1], "", ""), (ROWS, "", ""), (ROWS, "t", ""), (ROWS, "t", "f")]
    ]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 4


def test_nothing_to_say_draws_nothing() -> None:
    image = grey(100, 200)
    drawn = draw_predictions(image, [])
    assert np.array_equal(drawn, image)
    assert not np.shares_memory(drawn, image)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.lists(st.tuples(st.text(max_size=60), st.floats(0, 1)), max_size=6),
    st.text(max_size=30),
    st.text(max_size=30),
)
def test_any_size_and_any_words_will_do(
    height_px: int, width_px: int, rows: list[tuple[str, float]], title: str, footer: str
) -> None:
    image = grey(height_px, width_px)
    drawn = draw_predictions(image, rows, title=title, footer=footer)
    assert drawn.shape == image.shape
    assert (image == 128).all()


@pytest.mark.parametrize(
    ("size_px", "least_px", "expected"),
    [((90, 160), 360, (360, 640)), ((40, 30), 360, (480, 360)), ((400, 500), 360, (400, 500)), ((1, 3), 4, (4, 12))],
)
def test_small_frames_are_enlarged(size_px: tuple[int, int], least_px: int, expected: tuple[int, int]) -> None:
    fitted = fit_for_display(grey(*size_px), least_px)
    assert fitted.shape == (*expected, 3)
    assert (fitted == 128).all()


def test_thumbnails_keep_hard_edges() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    assert set(np.unique(fit_for_display(image, 80))) == {0, 255}


@pytest.mark.parametrize(
    "call",
    [
        lambda: draw_predictions(np.zeros((8, 8), np.uint8), []),
        lambda: draw_predictions(np.zeros((8, 8, 3), np.float32), []),
        lambda: draw_predictions(grey(100, 100), [("x", 1.5)]),
        lambda: draw_predictions(grey(100, 100), [("x", float("nan"))]),
        lambda: fit_for_display(np.zeros((8, 8, 4), np.uint8)),
        lambda: fit_for_display(grey(8, 8), 0),
    ],
)
def test_impossible_requests_are_refused(call: object) -> None:
    with pytest.raises(InputError):
        call()
