"""From a picture's values to what a screen shows: 8-bit grey or colour.

The rule, in this order:
1. the window given by the caller;
2. the file's own VOI lookup table or window (the first of several);
3. 8-bit values as they are;
4. deeper values (uint16, float32) linearly from the picture's smallest to its largest finite value. Percentiles are
   never applied unasked: `percentile_window` computes such a window for a caller who wants it.
Then pictures whose small values are bright (MONOCHROME1) are inverted.
"""

from __future__ import annotations

import numpy as np

from medmvl.imaging.picture import WINDOW_FUNCTIONS, Lut, Picture, Window


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
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(low) or not np.isfinite(high):
        finite = array[np.isfinite(array)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return Window.between(low, high if high > low else low + 1.0)


def percentile_window(array: np.ndarray, low: float, high: float) -> Window:
    """Return the window between two percentiles (0..100) of the finite values of `array`.

    Raises:
        ValueError: not 0 <= low < high <= 100, or nothing finite.
    """
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles must satisfy 0 <= low < high <= 100, got {low} and {high}")
    finite = array[np.isfinite(array)]
    if not finite.size:
        raise ValueError("no finite value to take percentiles of")
    black, white = (float(value) for value in np.percentile(finite, [low, high]))
    return Window.between(black, white if white > black else black + 1.0)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Round float values to uint8, working in place; NaN becomes 0."""
    np.fmax(values, 0, out=values)
    np.minimum(values, 255, out=values)
    values += 0.5
    return values.astype(np.uint8)
