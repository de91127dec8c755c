"""Affines compose, invert and carry boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmvl.imaging.geometry import beyond, chain, invert, rotation, scaling, transform_box, translation

small = st.floats(-50, 50)


def test_first_one_first():
    affine = chain(translation(1, 2), scaling(10, 100))
    assert transform_box((0, 0, 1, 1), affine) == (10, 200, 20, 300)


def test_positive_degrees_turn_clockwise_on_screen():
    x0, y0, x1, y1 = transform_box((1, 0, 1, 0), rotation(90))
    assert (round(x0, 9), round(y0, 9)) == (0, 1) and (round(x1, 9), round(y1, 9)) == (0, 1)


@given(small, small, st.floats(0.1, 10), st.floats(-180, 180))
def test_inverse_brings_back(x, y, factor, degrees):
    affine = chain(translation(x, y), scaling(factor, factor), rotation(degrees))
    np.testing.assert_allclose(chain(affine, invert(affine)), np.eye(3)[:2], atol=1e-9)


def test_hull_and_clip():
    box = transform_box((0, 0, 10, 10), chain(rotation(45), translation(0, 0)))
    np.testing.assert_allclose(box, (-(50**0.5), 0, 50**0.5, 200**0.5))
    assert transform_box((-5, 2, 50, 4), np.eye(3)[:2], size=(10, 20)) == (0, 2, 20, 4)
    assert transform_box((30, 2, 50, 4), np.eye(3)[:2], size=(10, 20)) == (20, 2, 20, 4)


def test_volume_boxes_are_refused():
    with pytest.raises(ValueError, match="4 coordinates"):
        transform_box((0, 0, 0, 1, 1, 1), np.eye(3)[:2])


@pytest.mark.parametrize(
    ("coords", "size", "said"),
    [
        ((-1, 0, 21, 10), (10, 20), ""),
        ((-1.1, 0, 20, 10), (10, 20), "partly"),
        ((0, 0, 2020, 10), (10, 2000), ""),
        ((0, 0, 2021, 10), (10, 2000), "partly"),
        ((20, 0, 30, 10), (10, 20), "outside"),
        ((0, 0, -5, 2, 2, 0), (4, 20, 30), "outside"),
        ((0, 0, 0, 30, 20, 5), (4, 20, 30), ""),
        ((0, 0, 0, 4, 20, 30), (4, 20, 30), "partly"),
    ],
)
def test_boxes_beyond_their_frame(coords, size, said):
    assert beyond(coords, size) == said
