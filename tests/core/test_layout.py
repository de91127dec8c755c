"""Layouts: what they accept, and where positions restart."""

import pytest

from medmvl.core.layout import Layout, Segment


def test_positions_restart() -> None:
    layout = Layout((Segment(0, 4), Segment(4, 6, 0, 4), Segment(6, 9, 0, 4), Segment(9, 11)))
    assert layout.length == 11
    assert list(layout.positions()) == [0, 1, 2, 3, 4, 5, 4, 5, 6, 0, 1]
    assert Layout(()).length == 0


@pytest.mark.parametrize(
    "segments",
    [
        [(1, 2)],
        [(0, 2), (3, 4)],
        [(0, 2), (1, 4)],
        [(0, 2), (2, 4, 0, 1)],
        [(0, 2), (2, 4, 0, 2), (4, 5, 2, 4)],
    ],
)
def test_no_gaps_and_prefixes_are_segments(segments: list) -> None:
    with pytest.raises(ValueError, match="segment"):
        Layout(tuple(Segment(*segment) for segment in segments))


@pytest.mark.parametrize("segment", [(2, 2), (3, 2), (-1, 2), (0, 2, 1, 0), (0, 2, 0, 1)])
def test_segments_that_cannot_be(segment: tuple) -> None:
    with pytest.raises(ValueError):
        Segment(*segment)
