"""Preparation: pixels where the affine says, grey and colour, blank pictures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmvl.imaging.geometry import invert, transform_box
from medmvl.imaging.picture import ImageError, Picture, Window
from medmvl.imaging.prepare import blank, prepare
from medmvl.imaging.spec import VisionSpec

SPECS = {
    "stretch": VisionSpec(size=(48, 64)),
    "crop": VisionSpec(size=(48, 48), fit="crop", edge=56),
    "crop_pair": VisionSpec(size=(40, 40), fit="crop", edge=(50, 60)),
    "crop_only": VisionSpec(size=(40, 48), fit="crop"),
    "crop_larger": VisionSpec(size=(90, 91), fit="crop", edge=60),
    "pad": VisionSpec(size=(64, 64), fit="pad"),
}


def grey_back(pixels, spec):
    """The 8-bit values again."""
    mean, std = np.array(spec.mean)[:, None, None], np.array(spec.std)[:, None, None]
    return (pixels * std + mean) / spec.rescale


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_affine_says_where_a_rectangle_went(name, data):
    spec = SPECS[name]
    height, width = data.draw(st.integers(40, 130)), data.draw(st.integers(40, 130))
    x0, y0 = data.draw(st.integers(0, width - 20)), data.draw(st.integers(0, height - 20))
    x1, y1 = data.draw(st.integers(x0 + 12, width)), data.draw(st.integers(y0 + 12, height))
    array = np.full((height, width), 20, np.uint8)
    array[y0:y1, x0:x1] = 240
    prepared = prepare(Picture(array), spec)
    assert prepared.pixels.shape == (3, *spec.size) and prepared.pixels.dtype == np.float32
    box = transform_box((x0, y0, x1, y1), prepared.to_spec, spec.size)
    found = marked(grey_back(prepared.pixels, spec)[0] > (190 if name == "pad" else 130))
    if found is None:
        assert min(box[2] - box[0], box[3] - box[1]) <= 1.5
    else:
        np.testing.assert_allclose(found, box, atol=1.01)
    back = transform_box(transform_box((x0, y0, x1, y1), prepared.to_spec), invert(prepared.to_spec))
    np.testing.assert_allclose(back, (x0, y0, x1, y1), atol=1e-9)


def marked(mask):
    """The box around the True pixels, edges included; None without any."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return None if not len(rows) else (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def test_stretching_keeps_corners():
    prepared = prepare(Picture(np.zeros((10, 20), np.uint8)), VisionSpec(size=(5, 40)))
    assert transform_box((0, 0, 20, 10), prepared.to_spec) == (0, 0, 40, 5)


def test_grey_is_repeated_and_color_becomes_luminance():
    array = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    spec = VisionSpec(size=(30, 40), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = prepare(Picture(array), spec).pixels
    np.testing.assert_allclose(grey_back(pixels, spec), np.stack([array] * 3), atol=1e-4)
    one = VisionSpec(size=(30, 40), channels=1, mean=(0.5,), std=(0.5,))
    assert prepare(Picture(array), one).pixels.shape == (1, 30, 40)
    color = np.stack([array, array // 2, array // 3], -1)
    luminance = color @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey_back(prepare(Picture(color), one).pixels, one)[0], luminance, atol=1)


def test_deep_pictures_pass_their_window_first():
    values = np.linspace(-1000, 1000, 64, dtype=np.float32).reshape(8, 8)
    spec = VisionSpec(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    pixels = prepare(Picture(values, shown=Window.between(-100, 100)), spec).pixels
    np.testing.assert_allclose(pixels[0], np.clip((values + 100) / 200, 0, 1), atol=0.003)


def test_padding_is_the_mean_color():
    spec = VisionSpec(size=(60, 60), fit="pad", mean=(0.2, 0.4, 0.6))
    for array in (np.full((20, 60), 255, np.uint8), np.full((20, 60, 3), 255, np.uint8)):
        pixels = prepare(Picture(array), spec).pixels
        assert np.abs(pixels[:, :18]).max() < 1 / 255 / 0.5
        np.testing.assert_allclose(pixels[:, 22:38].reshape(3, -1).max(1), (1 - np.array(spec.mean)) / 0.5, rtol=1e-5)


def test_nothing_is_changed_in_place():
    array = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    before = array.copy()
    prepare(Picture(array, inverted=True), VisionSpec(size=(16, 16)))
    np.testing.assert_array_equal(array, before)


def test_blank_is_mid_grey():
    spec = VisionSpec(size=(4, 6), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    np.testing.assert_allclose(blank(spec), prepare(Picture(np.full((9, 9), 128, np.uint8)), spec).pixels, rtol=1e-6)
    assert blank(VisionSpec(size=(2, 4, 6), channels=1, mean=(0.5,), std=(0.5,))).shape == (1, 2, 4, 6)


def test_volume_specs_are_refused():
    with pytest.raises(ValueError, match="volume spec"):
        prepare(Picture(np.zeros((4, 4), np.uint8)), VisionSpec(size=(2, 4, 4)))


@pytest.mark.parametrize("name", ["crop", "pad"])
def test_a_hair_is_not_blown_up_to_gigabytes(name):
    with pytest.raises(ImageError, match=r"thin.*decompression bombs"):
        prepare(Picture(np.zeros((1, 60_000), np.uint8), path="thin.png"), SPECS[name])
