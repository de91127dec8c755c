"""Fills slices that are laid on a grid with their values, and straightens what a tilted gantry slanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from medmvl.imaging.dicom_file import padding
from medmvl.imaging.geometry import chain
from medmvl.imaging.hounsfield import HuSource, Rescale, choose
from medmvl.imaging.orient import from_file
from medmvl.imaging.picture import ImageError
from medmvl.imaging.stack import Plane, Stack
from medmvl.imaging.values import to_values
from medmvl.imaging.volume import Volume, check_voxels

AIR = -1000
"""Hounsfield units of air: what padding outside the scanner's field of view becomes."""


def fill(path: Path, laid: Stack, decoded: Iterable[tuple[int, np.ndarray]], hu: HuSource | None = None) -> Volume:
    """Rescale decoded slices, each by its own slope and intercept, into one volume.

    Padding becomes air (-1000) where values are HU, else the lowest value outside it. The array is int16 where that is
    exact, else float32. A tilted stack is resampled, slice by slice and linearly, to the straight grid that holds it.

    Args:
        path: the file or folder, for messages and `Volume.path`.
        laid: the slices in order.
        decoded: (place in `laid.planes`, stored values [H, W]) in any order, decoded one at a time.
        hu: where HU come from, see `hounsfield.choose`; None: from the header. "header" makes a CT of unspecified unit
            one in HU; other modalities keep what their headers say.

    Raises:
        ImageError: too many voxels, a slice that cannot be decoded, inverted greys, nothing but padding, or values that
            `values.to_values` refuses.
    """
    check_voxels(path, laid.size)
    modality = laid.planes[0].alike["modality"]
    unknown = hu is None or (hu == "header" and modality != "CT")
    unit = "HU" if not unknown or laid.planes[0].alike["unit of the rescaled values"] == "HU" else ""
    _check_shown(path, laid.planes[0], unit)
    scales = [choose(path, one.rescale or Rescale(), hu) for one in laid.planes]
    array, lowest = _values(path, laid, scales, decoded, AIR if unit == "HU" else None)
    array = to_values(array, Rescale(), path, unit)
    z, y, x = laid.spacing
    if laid.drift == (0.0, 0.0):
        return from_file(array, laid.spacing, laid.origin, laid.direction, path, modality, unit)
    array, shear = _straighten(path, array, laid.drift, lowest)
    rows, columns, normal = np.reshape(laid.direction, (3, 3))
    first = shear[:2, 2] / 2 + shear[:2, 3]  # pixels (x, y) from the straight grid's corner to that of the first slice
    corner = np.array(laid.origin) - first[0] * x * rows - first[1] * y * columns
    volume = from_file(array, laid.spacing, corner, laid.direction, path, modality, unit)
    slant = normal * z + rows * laid.drift[0] * x + columns * laid.drift[1] * y
    length = float(np.linalg.norm(slant))
    own = dataclasses.replace(
        volume.original,
        size=laid.size,
        spacing=(length, y, x),
        origin=laid.origin,
        direction=(*laid.direction[:6], *(slant / length).tolist()),
        to_canonical=chain(shear, volume.original.to_canonical),
    )
    return dataclasses.replace(volume, original=own)


def _values(
    path: Path,
    laid: Stack,
    scales: Sequence[Rescale],
    decoded: Iterable[tuple[int, np.ndarray]],
    padded_as: float | None,
) -> tuple[np.ndarray, float]:
    """Return the rescaled values [D, H, W], and the one that stands for "nothing was measured here"."""
    whole = all(_is_whole(scale) for scale in scales)
    array = np.empty(laid.size, np.int16 if whole else np.float32)
    lowest, empty = np.inf, 0
    unmeasured: dict[int, np.ndarray] = {}
    for place, stored in decoded:
        one, scale = laid.planes[place], scales[place]
        if stored.shape != one.size:
            raise ImageError(path, f"{one.name} decodes to {stored.shape}, its header says {one.size}; get it again")
        mask = padding(one.header, stored)
        if mask is not None:
            unmeasured[place] = np.packbits(mask)  # an eighth of a byte each: all of them are kept until the end
            if mask.all():
                array[place] = 0  # until the lowest value is known
                empty += 1
                continue
            stored = np.where(mask, stored[~mask].min(), stored)
        values = _rescaled(stored, scale)
        if array.dtype == np.int16 and not _fits(values):
            array = array.astype(np.float32)
        array[place] = values
        lowest = min(lowest, float(np.fmin.reduce(array[place], axis=None)))
    if empty == len(array):
        raise ImageError(path, "all its pixels are padding; nothing was measured in it")
    lowest = lowest if padded_as is None else padded_as
    for place, packed in unmeasured.items():
        array[place][np.unpackbits(packed, count=array[place].size).view(bool).reshape(laid.planes[0].size)] = lowest
    return array, lowest


def _rescaled(stored: np.ndarray, scale: Rescale) -> np.ndarray:
    if scale.is_identity:
        return stored
    if stored.dtype.kind in "iu" and _is_whole(scale):
        small = stored.dtype.itemsize < 4 and abs(scale.slope) < 2**14 and abs(scale.intercept) < 2**30
        bits = np.int32 if small else np.int64
        return stored.astype(bits) * bits(scale.slope) + bits(scale.intercept)
    return stored.astype(np.float64) * scale.slope + scale.intercept


def _is_whole(scale: Rescale) -> bool:
    return float(scale.slope).is_integer() and float(scale.intercept).is_integer()


def _fits(values: np.ndarray) -> bool:
    """Whether int16 holds these values exactly."""
    if values.dtype.kind not in "iu":
        return False
    if np.can_cast(values.dtype, np.int16):
        return True
    limits = np.iinfo(np.int16)
    return limits.min <= int(values.min()) and int(values.max()) <= limits.max


def _straighten(
    path: Path, array: np.ndarray, drift: tuple[float, float], outside: float
) -> tuple[np.ndarray, np.ndarray]:
    """Put each slice where it lies on a grid that stands upright on the first one.

    Returns:
        The straight array, wider and higher by what the slices drift; the affine [3, 4] from the slanted grid to it.
    """
    depth, height, width = array.shape
    counts = np.arange(depth)[:, None] * np.array(drift)
    shifts = counts - counts.min(0)  # [D, 2]: x and y, none negative
    more = np.ceil(np.round(shifts.max(0), 6)).astype(int)
    size = (depth, height + int(more[1]), width + int(more[0]))
    check_voxels(path, size)
    straight = np.full(size, outside, array.dtype)
    for index, (across, down) in enumerate(shifts):
        x, y = int(across), int(down)
        padded = np.pad(array[index].astype(np.float32), 1, constant_values=outside)
        mixed = padded[1:] * (1 - (down - y)) + padded[:-1] * (down - y)
        mixed = mixed[:, 1:] * (1 - (across - x)) + mixed[:, :-1] * (across - x)
        target = straight[index, y : y + height + 1, x : x + width + 1]
        mixed = mixed[: target.shape[0], : target.shape[1]]
        target[:] = np.rint(mixed) if array.dtype == np.int16 else mixed
    shear = np.eye(3, 4)
    shear[:2, 2] = drift
    shear[:2, 3] = shifts[0] - np.array(drift) / 2  # the first slice's centre lies at z = 0.5
    return straight, shear


def _check_shown(path: Path, one: Plane, unit: str) -> None:
    kind = one.alike["photometric interpretation"]
    if kind == "MONOCHROME2" or (kind == "MONOCHROME1" and unit == "HU"):
        return
    raise ImageError(
        path, f"its photometric interpretation is {kind}; volumes are read as MONOCHROME2 only: convert it"
    )
