"""A volume as one picture: the same however it is stored, boxes where they belong, nothing lost on the way."""

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from medmvl.imaging.montage import montage
from medmvl.imaging.orient import from_file
from medmvl.imaging.picture import ImageError
from medmvl.imaging.read import read_volume


def test_the_montage_is_the_same_in_every_orientation(tmp_path):
    shown = set()
    for orientation in phantom.ORIENTATIONS[::6]:
        box = phantom.box(sitk.GetArrayFromImage(phantom.image(orientation)))
        volume = read_volume(phantom.write(tmp_path / f"{orientation}.nii.gz", orientation))
        laid = montage(volume, [box], width=120, columns=3, rows=1)
        rectangles = [tuple(np.round(one, 6)) for one in laid.rectangles(box)]
        shown.add((laid.pixels.tobytes(), laid.slices, tuple(rectangles)))
    assert len(shown) == 1
    _, slices, rectangles = shown.pop()
    assert 4 in slices and len(rectangles) == sum(3 <= index < 5 for index in slices)


def test_a_rectangle_lies_on_what_the_box_holds():
    array = np.zeros((6, 40, 20), np.int16)
    array[2:4, 10:20, 4:12] = 1000
    volume = from_file(array, (5.0, 1.0, 2.0), (0, 0, 0), phantom.STRAIGHT, "x")
    laid = montage(volume, [(4, 10, 2, 12, 20, 4)], width=240, columns=3, rows=2)
    assert laid.tile == (80, 80) and laid.slices == (0, 1, 2, 3, 4, 5) and laid.pixels.shape == (160, 240)
    (first, second) = laid.rectangles((4, 10, 2, 12, 20, 4))
    assert first == pytest.approx((160 + 16, 20, 160 + 48, 40)) and second == pytest.approx((16, 100, 48, 120))
    for x0, y0, x1, y1 in (first, second):
        inside = laid.pixels[int(y0) + 1 : int(y1) - 1, int(x0) + 2 : int(x1) - 2]
        assert inside.min() == 255
    assert laid.rectangles((0, 0, 0, 1, 1, 1))[0][:2] == (0, 0) and len(laid.rectangles((0, 0, 0, 1, 1, 6))) == 6


def test_the_middle_of_a_box_is_shown_even_between_the_chosen_slices():
    volume = from_file(np.arange(1000, dtype=np.int16).reshape(100, 2, 5), (1.0,) * 3, (0, 0, 0), phantom.STRAIGHT, "x")
    boxes = [(0, 0, 3, 1, 1, 4), (0, 0, 50, 1, 1, 52), (0, 0, 97, 1, 1, 100)]
    laid = montage(volume, boxes, columns=2, rows=2)
    assert {3, 51, 98} <= set(laid.slices) and len(laid.slices) == 4
    assert all(laid.rectangles(box) for box in boxes)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 300, 1), (40, 1, 90)])
@pytest.mark.parametrize("spacing", [None, (1.0, 400.0, 0.01)])
def test_odd_shapes_give_a_picture_of_bounded_size(shape, spacing):
    volume = from_file(np.ones(shape, np.float32), spacing, None, None, "x")
    laid = montage(volume, width=99)
    assert laid.pixels.shape[1] == 99 and laid.pixels.shape[0] <= 3 * 4 * 33


def test_units_decide_what_is_black_and_white():
    array = np.linspace(-2000, 2000, 4000).reshape(10, 20, 20).astype(np.float32)
    ct = montage(from_file(array, None, None, None, "x", unit="HU"), width=60, columns=1, rows=1).pixels
    mr = montage(from_file(array, None, None, None, "x"), width=60, columns=1, rows=1).pixels
    assert ct[30, 30] == pytest.approx(128 + 210 * 127 / 1000, abs=2) and mr[30, 30] < ct[30, 30]
    with pytest.raises(ImageError, match="no finite value"):
        montage(from_file(array * np.nan, None, None, None, "x"))
