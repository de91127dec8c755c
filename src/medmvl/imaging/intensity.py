"""From values to what a screen shows or an encoder sees: which value is black and which white.

The rule for pictures, in this order:
1. the window given by the caller;
2. the file's own VOI lookup table or window (the first of several);
3. 8-bit values as they are;
4. deeper values (uint16, float32) linearly from the picture's smallest to its largest finite value. Percentiles are
   never applied unasked: `percentile_window` computes such a window for a caller who wants it.
Then pictures whose small values are bright (MONOCHROME1) are inverted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medmvl.imaging.header import warn_once
from medmvl.imaging.hounsfield import check_range
from medmvl.imaging.picture import WINDOW_FUNCTIONS, ImageError, Lut, Picture, Window
from medmvl.imaging.spec import VisionSpec
from medmvl.imaging.volume import Volume

CT_WINDOW = (-1000.0, 1000.0)
"""HU shown from black to white where a spec names no window."""

_DISPLAY = {"0..255": (0.0, 255.0), "0..1": (0.0, 1.0)}


def to_display(picture: Picture, window: Window | None = None) -> np.ndarray:
    """Return the picture as a screen shows it.

    Args:
        picture: any picture.
        window: shown instead of the file's own; in the picture's values (HU for CT).

    Returns:
        uint8 array [H, W] or [H, W, 3]; the picture's own array, not a copy, when nothing had to change.

    Raises:
        ValueError: the window's width or function makes no sense.
    """
    shown = window or picture.shown
    if isinstance(shown, Lut):
        display = apply_lut(picture.array, shown)
    elif shown is not None:
        display = apply_window(picture.array, shown)
    elif picture.array.dtype == np.uint8:
        display = picture.array
    else:
        display = apply_window(picture.array, value_range(picture.array))
    return 255 - display if picture.inverted else display


def apply_window(array: np.ndarray, window: Window) -> np.ndarray:
    """Return uint8 of the array's shape: 0 below the window, 255 above, rounded between; NaN is black.

    Formulas of DICOM PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID) and C.11.2.1.3.2 (LINEAR_EXACT).

    Raises:
        ValueError: width below 1 (LINEAR), not above 0 (others), or an unknown function.
    """
    center, width = float(window.center), float(window.width)
    function = window.function.upper()
    if function not in WINDOW_FUNCTIONS:
        raise ValueError(f"window function {window.function!r} is unknown; known are {', '.join(WINDOW_FUNCTIONS)}")
    if not (width >= 1 if function == "LINEAR" else width > 0):
        least = "at least 1" if function == "LINEAR" else "above 0"
        raise ValueError(f"the width of a {function} window must be {least}, got {width:g}")
    if function == "SIGMOID":
        # Beyond +-60 the sigmoid is 0 or 1 in float32; the clip only keeps exp() from overflowing.
        exponent = np.clip((array.astype(np.float32) - center) * (-4 / width), -60, 60)
        share = 1 / (1 + np.exp(exponent))
        return _to_bytes(share * 255)
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return np.where(array > center, 255, 0).astype(np.uint8)
    scale = 255 / width
    values = np.multiply(array, np.float32(scale), dtype=np.float32)
    values += np.float32(127.5 - center * scale)
    return _to_bytes(values)


def apply_lut(array: np.ndarray, lut: Lut) -> np.ndarray:
    """Return uint8 of the array's shape: entries of the table, scaled from 0..`lut.high` to 0..255."""
    table = _to_bytes(lut.entries.astype(np.float32) * (255 / lut.high))
    index = np.rint(array).astype(np.int64) if array.dtype.kind == "f" else array.astype(np.int64)
    return table[np.clip(index - lut.first, 0, len(table) - 1)]


def value_range(array: np.ndarray) -> Window:
    """Return the window from the smallest to the largest finite value of `array`; a flat picture is all black."""
    low, high = extremes(array) or (0.0, 0.0)
    return Window.between(low, high if high > low else low + 1.0)


def percentile_window(array: np.ndarray, low: float, high: float) -> Window:
    """Return the window between two percentiles (0..100) of the finite values of `array`.

    Raises:
        ValueError: not 0 <= low < high <= 100, or nothing finite.
    """
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles must satisfy 0 <= low < high <= 100, got {low} and {high}")
    black, white = percentiles(array, (low, high))
    return Window.between(black, white if white > black else black + 1.0)


def volume_window(volume: Volume, spec: VisionSpec) -> tuple[float, float]:
    """Return which values of a volume become 0 and 255 for `spec`.

    HU, and values of unknown unit that a HU window is asked for, take the HU window. An array whose unit is 0..255 or
    0..1 has been windowed before: that range is its window, and a HU window is not applied again. Percentiles are those
    of all finite voxels of the whole volume, background included, after clipping to the HU window (as MONAI's
    ScaleIntensityRangePercentiles after a clip); between two voxels they are interpolated. Headroom goes on top of
    them. A flat volume is all black.
    Values used as HU that hardly can be are warned about, with the file's name (see `hounsfield.check_range`).

    Raises:
        ImageError: a HU window for something that is no CT, or a volume without a finite value.
    """
    low, high = -np.inf, np.inf
    if volume.unit in _DISPLAY:
        low, high = _DISPLAY[volume.unit]
    elif spec.hu_window is not None:
        low, high = _hu_window(volume, spec.hu_window)
    elif spec.percentile_window is None and volume.unit == "HU":
        low, high = _hu_window(volume, CT_WINDOW)
    if spec.percentile_window is None and np.isfinite(low):
        return low, high
    try:
        black, white = percentiles(volume.array, spec.percentile_window or (0, 100), low, high)
    except ValueError as error:
        raise ImageError(volume.path, f"cannot be windowed: {error}") from error
    if spec.percentile_window is None:
        warn_once(
            volume.path,
            "window",
            f"nothing says what its values are, so they are scaled by their own range, {black:g} to {white:g}; one "
            "outlier then darkens the rest. Say where Hounsfield units come from (#hu=header, #hu=already_hu) or what "
            "the values are (#unit=...), or give the encoder's spec a percentile_window",
        )
    return black, black + (white - black) / (1 - spec.headroom) if white > black else black + 1.0


def _hu_window(volume: Volume, window: tuple[float, float]) -> tuple[float, float]:
    if volume.modality not in ("", "CT") or volume.unit not in ("", "HU"):
        what = f"modality {volume.modality or 'unknown'}, unit {volume.unit or 'unknown'}"
        raise ImageError(
            volume.path,
            f"is no CT in HU ({what}), and the spec's hu_window {window} is for CT; use percentile_window, such as "
            "(0.5, 99.5), for MRI",
        )
    check_range(volume.array, volume.path)
    return window


def extremes(array: np.ndarray) -> tuple[float, float] | None:
    """Return the smallest and the largest finite value, None where nothing is finite."""
    if not array.size:
        return None
    low, high = float(array.min()), float(array.max())
    if np.isfinite(low) and np.isfinite(high):
        return low, high
    ends = [found for part in array if (found := _finite_ends(part))]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None


def _finite_ends(part: np.ndarray) -> tuple[float, float] | None:
    finite = part[np.isfinite(part)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def percentiles(array: np.ndarray, shares: Sequence[float], low: float = -np.inf, high: float = np.inf) -> list[float]:
    """Return percentiles (0..100) of the finite values of `array`, as np.percentile does, after clipping to low..high.

    Exact, yet without sorting or copying the array: values are counted by their upper 16 bits, and floats once more,
    by their lower 16 bits, where a percentile falls.

    Args:
        array: [H, W] or [D, H, W] of uint8, int16, uint16 or float32.

    Raises:
        ValueError: nothing finite.
    """
    if tuple(shares) == (0, 100):
        ends = extremes(array)
        if ends is None:
            raise ValueError("there is no finite value in it")
        return [min(max(end, low), high) for end in ends]
    counts = {-1: _counts(array, -1)}
    total = int(counts[-1].sum())
    if not total:
        raise ValueError("there is no finite value in it")
    result = []
    for share in shares:
        position = share / 100 * (total - 1)
        below = int(position)
        pair = [_at_rank(array, counts, min(rank, total - 1)) for rank in (below, below + 1)]
        lower, upper = (min(max(value, low), high) for value in pair)
        result.append(lower + (upper - lower) * (position - below))
    return result


def _at_rank(array: np.ndarray, counts: dict[int, np.ndarray], rank: int) -> float:
    """Return the value that `rank` others come before in order; `counts` keeps what was counted, by upper bits."""
    ends = np.cumsum(counts[-1])
    upper = int(np.searchsorted(ends, rank, side="right"))
    if array.dtype.kind in "iu":
        return float(upper + np.iinfo(array.dtype).min)
    if upper not in counts:
        counts[upper] = _counts(array, upper)
    before = rank - int(ends[upper] - counts[-1][upper])
    key = upper << 16 | int(np.searchsorted(np.cumsum(counts[upper]), before, side="right"))
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))


def _counts(array: np.ndarray, upper: int) -> np.ndarray:
    """Count values by their upper 16 bits (`upper` -1), or those with these upper bits by their lower 16; int64 [n]."""
    counts = np.zeros(1 << 16, np.int64)
    for part in array if array.ndim == 3 else array[None]:
        if array.dtype.kind in "iu":
            keys = part.astype(np.int64).ravel() - np.iinfo(array.dtype).min
        else:
            bits = part[np.isfinite(part)].astype(np.float32, copy=False).view(np.uint32)
            keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # the order of these is that of the floats
            keys = (keys >> 16 if upper < 0 else keys[keys >> 16 == upper] & 0xFFFF).astype(np.int64)
        counts += np.bincount(keys, minlength=1 << 16)
    return counts


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Round float values to uint8, working in place; NaN becomes 0."""
    np.fmax(values, 0, out=values)
    np.minimum(values, 255, out=values)
    values += 0.5
    return values.astype(np.uint8)
