"""Boxes of [x, y, width, height], and the two ways to ask about a box."""

import pytest

from medmvl.data.adapters.regions import corners


def test_corners() -> None:
    assert corners([3, 4, 20, 10]) == (3, 4, 23, 14)  # upper corner exclusive
    assert corners([0, 0.5, 1, 2]) == (0, 0.5, 1, 2.5)


@pytest.mark.parametrize(
    "box", [[1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, None], [True, 2, 3, 4], [-1, 2, 3, 4], [1, 2, 0, 4], "1234", {}]
)
def test_what_is_no_box_is_refused(box) -> None:
    with pytest.raises(ValueError, match=r"\[x, y, width, height\] in pixels, got"):
        corners(box)
