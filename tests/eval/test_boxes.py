"""Metrics on boxes by hand, and against the counting of pixels and voxels."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmvl.eval.metrics import boxes
from medmvl.eval.metrics.boxes import acc_centre, acc_iou50_unimed, iou, iou_mean, iou_mean_m3d, iou_mean_unimed
from medmvl.eval.metrics.metric import Answers
from medmvl.eval.metrics.table import METRICS, measure

NAMES = [name for name, target in METRICS.items() if target.startswith("medmvl.eval.metrics.boxes:")]
Box = tuple[int, ...]


def drawn_boxes(axes: int) -> st.SearchStrategy[Box]:
    sides = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted), min_size=axes, max_size=axes)
    return sides.map(lambda found: (*(low for low, _ in found), *(high for _, high in found)))


pairs = st.sampled_from([2, 3]).flatmap(lambda axes: st.tuples(drawn_boxes(axes), drawn_boxes(axes)))


def cells(box: Box, last_inside: bool = False) -> set[tuple[int, ...]]:
    """Return the pixels or voxels of a box one by one."""
    axes = len(box) // 2

    def along(axis: int) -> Iterator[int]:
        return iter(range(box[axis], box[axes + axis] + last_inside))

    return set(itertools.product(*(along(axis) for axis in range(axes))))


@settings(max_examples=1000, deadline=None)
@given(pairs)
def test_equal_to_counted_cells(pair: tuple[Box, Box]) -> None:
    first, second = map(cells, pair)
    counted = len(first & second) / len(first | second) if first | second else 0.0
    assert iou_mean(*pair) == iou_mean(*pair[::-1]) == pytest.approx(counted, abs=1e-12)
    first, second = (cells(box, last_inside=True) for box in pair)
    assert iou_mean_unimed(*pair) == pytest.approx(len(first & second) / len(first | second), abs=1e-12)
    assert acc_iou50_unimed(*pair) == (2 * len(first & second) > len(first | second))
    low, high = (np.array(pair).reshape(2, 2, -1)[:, corner] for corner in (0, 1))
    around = cells((*low.min(axis=0).tolist(), *high.max(axis=0).tolist()))
    shared = len(cells(pair[0]) & cells(pair[1]))
    assert iou_mean_m3d(*pair) == pytest.approx(shared / len(around) if around else 0.0, abs=1e-12)
    assert iou_mean_m3d(*pair) <= iou_mean(*pair) + 1e-12
    for threshold in (1, 3, 5, 7, 9):
        expected = 10 * len(cells(pair[0]) & cells(pair[1])) >= threshold * len(cells(pair[0]) | cells(pair[1]))
        if cells(pair[0]) | cells(pair[1]):
            assert getattr(boxes, f"acc_iou{threshold}0")(*pair) == expected


@settings(max_examples=300, deadline=None)
@given(pairs, st.floats(0.01, 100), st.floats(-50, 50))
def test_size_and_place_of_the_frame_do_not_matter(pair: tuple[Box, Box], scale: float, shift: float) -> None:
    moved = [tuple(scale * value + shift for value in box) for box in pair]
    assert iou_mean(*moved) == pytest.approx(iou_mean(*pair), abs=1e-6)
    assert iou_mean_m3d(*moved) == pytest.approx(iou_mean_m3d(*pair), abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "reference", "plain", "unimed", "m3d"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1, 1, 1),
        ((0, 0, 10, 10), (5, 5, 15, 15), 25 / 175, 36 / 206, 25 / 225),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0, 2 / 6, 0),  # side by side
        ((0, 0, 20, 10), (0, 0, 10, 10), 0.5, 121 / 231, 0.5),
        ((0, 0, 1, 1), (5, 5, 6, 6), 0, 0, 0),
        ((3, 3, 3, 3), (3, 3, 3, 3), 0, 1, 0),  # a point is one pixel, or nothing
        ((0.5, 0.5, 2.5, 2.5), (0, 0, 2, 2), 2.25 / 5.75, 6.25 / 11.75, 2.25 / 6.25),
        ((0, 0, 0, 2, 2, 2), (1, 1, 1, 3, 3, 3), 1 / 15, 8 / 46, 1 / 27),
        ((0, 0, 0, 4, 4, 1), (0, 0, 0, 4, 4, 4), 0.25, 50 / 125, 0.25),
    ],
)
def test_by_hand(prediction: tuple, reference: tuple, plain: float, unimed: float, m3d: float) -> None:
    assert iou_mean(prediction, reference) == pytest.approx(plain, abs=1e-12)
    assert iou_mean_unimed(prediction, reference) == pytest.approx(unimed, abs=1e-12)
    assert iou_mean_m3d(prediction, reference) == pytest.approx(m3d, abs=1e-12)


def test_exactly_half_is_right_but_not_for_unimed() -> None:
    assert boxes.acc_iou50((0, 0, 2, 1), (0, 0, 1, 1)) == 1
    assert iou_mean_unimed((0, 0, 9, 9), (0, 0, 9, 4)) == 0.5 and acc_iou50_unimed((0, 0, 9, 9), (0, 0, 9, 4)) == 0
    assert boxes.acc_iou50((0, 0, 9, 9), (0, 0, 9, 4)) == 0  # and the plain IoU of these is below
    assert boxes.acc_iou70((0, 0, 10, 1), (0, 0, 7, 1)) == 1 and boxes.acc_iou90((0, 0, 10, 1), (0, 0, 7, 1)) == 0


def test_centre() -> None:
    truth = (10, 10, 20, 20)
    assert acc_centre((0, 0, 30, 30), truth) == 1  # far too large, well centred
    assert acc_centre((10, 10, 10, 10), truth) == acc_centre((15, 5, 25, 15), truth) == 1  # edges count
    assert acc_centre((16, 5, 26, 15), truth) == 0
    assert acc_centre((0, 0, 0, 4, 4, 4), (1, 1, 3, 3, 3, 5)) == 0  # beside it in depth alone


BROKEN = [
    None,
    (),
    (0, 0, 1),
    (0, 0, 0, 4, 4, 4),
    (0, 0, float("nan"), 4),
    (0, 0, float("inf"), 4),
    (4, 4, 0, 0),
    (0, 4, 4, 0),
    "0 0",
    "four",
]


def test_broken_boxes_score_nothing_and_are_counted() -> None:
    truth = (0.0, 0.0, 4.0, 4.0)
    found, missing = measure(NAMES, Answers([*BROKEN, truth], [truth] * (len(BROKEN) + 1)))
    assert not missing and "box_valid" in found
    for name, statistics in found.items():
        assert statistics.values.tolist() == [0.0] * len(BROKEN) + [1.0], name


def test_a_broken_truth_is_an_error() -> None:
    with pytest.raises(ValueError, match="a true box has 4 or 6 coordinates, got 3"):
        iou_mean((0, 0, 1), (0, 0, 1))
    with pytest.raises(ValueError, match="got 4 and 6"):
        iou((0, 0, 1, 1), (0, 0, 0, 1, 1, 1))
