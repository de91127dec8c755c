"""From stored numbers to the values of a volume: rescaled once, kept narrow where nothing is lost, and looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medmvl.imaging.hounsfield import Rescale, check_range
from medmvl.imaging.picture import ImageError

_NARROW = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16))
_LIMITS = {"0..255": (0.0, 255.0), "0..1": (0.0, 1.0)}


def to_values(stored: np.ndarray, rescale: Rescale, file: Path, unit: str) -> np.ndarray:
    """Rescale, then refuse what no model should see.

    Args:
        stored: [z, y, x], any number type; it is overwritten where it may be and its numbers are as wide.
        rescale: applied once.
        file: named in errors and warnings.
        unit: what is declared: "HU", "0..255", "0..1" or "".

    Returns:
        uint8, int16 or uint16 where the values are whole numbers that fit, else float32.

    Raises:
        ImageError: NaN or infinite voxels, nothing but one value, or values outside the declared unit.
    """
    values = rescaled(stored, rescale)
    check_finite(values, file)
    # A declared scale for display makes an even grey meaningful; a measured volume is never even.
    low = values.flat[0]
    if all((part == low).all() for part in values) and (low == 0 or unit not in _LIMITS):
        what = "every voxel is 0" if low == 0 else f"every voxel has the value {low:g}"
        raise ImageError(
            file, f"shows nothing: {what}; its download or conversion failed, leave it out or get it again"
        )
    if unit == "HU":
        check_range(values, file)
    elif unit in _LIMITS:
        _check_limits(values, file, unit)
    return values


def rescaled(stored: np.ndarray, rescale: Rescale) -> np.ndarray:
    """Return slope * stored + intercept in the narrowest type that loses nothing: uint8, int16, uint16, else float32.

    Floats are never made integers. `stored` is reused for the result where it may be written and is as wide.
    """
    if not stored.dtype.isnative:
        stored = stored.byteswap(inplace=stored.flags.writeable).view(stored.dtype.newbyteorder("="))
    target = _target(stored, rescale)
    if rescale.is_identity and target == stored.dtype:
        return stored
    reuse = stored.flags.writeable and stored.itemsize == target.itemsize
    values = stored.view(target) if reuse else np.empty(stored.shape, target)
    whole = stored.dtype.kind in "iu" and target.kind in "iu"
    slope, intercept = (int(rescale.slope), int(rescale.intercept)) if whole else (rescale.slope, rescale.intercept)
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which `check_finite` reports
        for part, result in zip(stored, values, strict=True):
            wide = part.astype(np.int64 if whole else np.float64)
            if slope != 1:
                wide *= slope
            if intercept != 0:
                wide += intercept
            result[...] = wide
    return values


def check_finite(values: np.ndarray, file: Path) -> None:
    """Refuse NaN and infinite voxels.

    Raises:
        ImageError: says how many there are.
    """
    if values.dtype.kind != "f":
        return
    bad = sum(part.size - int(np.count_nonzero(np.isfinite(part))) for part in values)
    if bad:
        raise ImageError(
            file, f"{bad:,} of {values.size:,} voxels are NaN or infinite; give them a value (such as air) and save it"
        )


def _target(stored: np.ndarray, rescale: Rescale) -> np.dtype:
    """The type of the result."""
    if rescale.is_identity and stored.dtype in _NARROW:
        return stored.dtype
    if stored.dtype.kind in "iu" and float(rescale.slope).is_integer() and float(rescale.intercept).is_integer():
        slope, intercept = int(rescale.slope), int(rescale.intercept)
        ends = sorted(slope * int(end) + intercept for end in (stored.min(), stored.max()))
        for dtype in (np.dtype(np.int16), np.dtype(np.uint16)):
            if np.iinfo(dtype).min <= ends[0] and ends[1] <= np.iinfo(dtype).max:
                return dtype
    return np.dtype(np.float32)


def _check_limits(values: np.ndarray, file: Path, unit: str) -> None:
    low, high = float(values.min()), float(values.max())
    bottom, top = _LIMITS[unit]
    slack = 1e-3 * top  # rounding of a resampling before
    if low < bottom - slack or high > top + slack:
        raise ImageError(file, f"its values go from {low:g} to {high:g}, which is not the declared unit {unit}")
    if unit == "0..255" and high <= 1:
        raise ImageError(file, f"its values go from {low:g} to {high:g}: that is unit 0..1, not the declared 0..255")
