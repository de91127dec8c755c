"""What a screen shows: windows, tables, ranges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmvl.imaging.header import warn_once
from medmvl.imaging.intensity import apply_lut, apply_window, percentile_window, to_display, value_range
from medmvl.imaging.picture import Lut, Picture, Window


def test_8_bit_is_shown_as_it_is_without_a_copy():
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert to_display(Picture(array)) is array
    np.testing.assert_array_equal(to_display(Picture(array, inverted=True)), 255 - array)


def test_deeper_pictures_are_shown_over_their_own_range():
    array = np.array([[100, 200], [300, 400]], np.uint16)
    np.testing.assert_array_equal(to_display(Picture(array)), [[0, 85], [170, 255]])
    floats = np.array([[np.nan, -1.0], [0.0, 1.0], [np.inf, -np.inf]], np.float32)
    np.testing.assert_array_equal(to_display(Picture(floats)), [[0, 0], [128, 255], [255, 0]])
    assert to_display(Picture(np.full((2, 2), 7, np.uint16))).max() == 0
    assert to_display(Picture(np.full((2, 2), np.nan, np.float32))).max() == 0


def test_given_window_beats_the_files_own():
    picture = Picture(np.array([[-200.0, 0.0, 200.0]], np.float32), shown=Window(0, 2000))
    np.testing.assert_array_equal(to_display(picture, Window.between(0, 200)), [[0, 0, 255]])


def test_linear_is_off_by_half_and_linear_exact_is_not():
    # PS3.3 C.11.2.1.2.1 note: centre 2048, width 4096 shows 0 as black and 4095 as white.
    values = np.array([[0, 4095, 2047, 2048]], np.uint16)
    assert apply_window(values, Window(2048, 4096)).tolist() == [[0, 255, 127, 128]]
    exact = apply_window(np.array([[10.0, 15.0, 20.0]], np.float32), Window(15, 10, "LINEAR_EXACT"))
    assert exact.tolist() == [[0, 128, 255]]
    # Width 1 is a threshold: values up to centre - 0.5 are black.
    assert apply_window(np.array([[99, 100]], np.uint16), Window(100, 1)).tolist() == [[0, 255]]


def test_sigmoid_is_half_at_the_centre_and_survives_extremes():
    shown = apply_window(np.array([[-1e9, 40.0, 1e9]], np.float32), Window(40, 100, "SIGMOID"))
    assert shown.tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("window", "words"),
    [(Window(0, 0.5), "at least 1"), (Window(0, 0, "SIGMOID"), "above 0"), (Window(0, 1, "CUBIC"), "known are LINEAR")],
)
def test_windows_that_make_no_sense(window, words):
    with pytest.raises(ValueError, match=words):
        apply_window(np.zeros((1, 1), np.float32), window)


@given(st.floats(-2000, 2000), st.floats(1.5, 5000), st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]))
def test_windows_never_fall(center, width, function):
    values = np.linspace(-4000, 4000, 101, dtype=np.float32)[None]
    shown = apply_window(values, Window(center, width, function)).astype(int)
    assert (np.diff(shown) >= 0).all()


def test_lut_clamps_at_both_ends():
    lut = Lut(first=-2, entries=np.array([0, 100, 200, 1023], np.uint16), high=1023)
    values = np.array([[-9, -2, -1, 0, 1, 9]], np.float32)
    assert apply_lut(values, lut).tolist() == [[0, 0, 25, 50, 255, 255]]


def test_percentiles_only_when_asked():
    array = np.arange(1001, dtype=np.float32).reshape(7, 143)
    assert percentile_window(array, 1, 99) == Window.between(10, 990)
    assert value_range(array) == Window.between(0, 1000)
    with pytest.raises(ValueError, match="0 <= low < high <= 100"):
        percentile_window(array, 99, 1)
    with pytest.raises(ValueError, match="no finite value"):
        percentile_window(np.full((2, 2), np.nan), 1, 99)


def test_a_data_set_in_doubt_is_told_by_its_first_files(caplog):
    for number in [*range(30), *range(30)]:
        warn_once(f"{number}.nii.gz#frame=1", "window", "is in doubt")
    assert len(caplog.records) == 10
    assert "0.nii.gz" in caplog.records[0].getMessage() and "are not told" in caplog.records[-1].getMessage()
    warn_once("0.nii.gz", "spacing", "is odd")
    assert caplog.records[-1].getMessage() == "0.nii.gz: is odd"
