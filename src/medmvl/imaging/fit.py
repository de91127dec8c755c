"""From a volume to the grid and value range of a spec, in one pass over the slices that count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from medmvl.imaging.geometry import chain
from medmvl.imaging.intensity import volume_window
from medmvl.imaging.orient import turned
from medmvl.imaging.picture import ImageError
from medmvl.imaging.spec import VisionSpec
from medmvl.imaging.volume import Volume

WHITE = {"int16": 32767, "uint8": 255, "uint8_floor": 255}
"""The stored value that means 255, the high end of the window, per `VisionSpec.levels`."""

_LONGEST = 16_384  # voxels along one axis after resampling to a spacing; more is a broken header, not anatomy
# Up to so much below a level counts as the level where values are cut off, for sums of weights end at 254.99998.
_NEARLY = 1e-4


@dataclass(frozen=True, eq=False)
class Fitted:
    """A volume as an encoder wants it, before normalisation; what the cache of prepared volumes holds.

    Attributes:
        values: [D, H, W] of the spec's size; int16 with 0..32767, or uint8 with 0..255, for the window's 0..255.
        to_spec: float64 [3, 4], continuous (x, y, z) of the file's frame -> of this one (see `geometry`).
        file_size: (depth, height, width) of the file's frame.
        spacing: (depth, row, column) spacing of this grid in mm, None where the file states none.
        oriented: whether the file says where left is (see `Volume.oriented`).
    """

    values: np.ndarray
    to_spec: np.ndarray
    file_size: tuple[int, int, int]
    spacing: tuple[float, float, float] | None = None
    oriented: bool = True


def fit_volume(volume: Volume, spec: VisionSpec) -> Fitted:
    """Orient, window, crop and resample a volume as `spec` says (see `VisionSpec` for the order of steps).

    A volume that does not say where its axes point stays as it is stored, whatever `orientation` asks for. Axes are
    resampled one after the other, all steps along an axis at once, slice by slice: beside the volume itself only the
    result and a few slices are in memory.

    Raises:
        ValueError: the spec is for pictures.
        ImageError: a HU window for something that is no CT, nothing brighter than the foreground's threshold, no
            finite value, or a spacing asked for that the file does not state.
    """
    if not spec.is_volume:
        raise ValueError(f"a volume cannot be prepared for the picture spec of size {spec.size}; use a 3D encoder")
    black, white = volume_window(volume, spec)
    array, to_oriented = volume.array, np.eye(3, 4)
    spacing = volume.spacing
    if volume.oriented:
        array, to_oriented = turned(array, spec.orientation)
        if spacing is not None:
            # Rows of the affine are x, y, z; spacing is z, y, x.
            spacing = tuple(float(step) for step in (np.abs(to_oriented[:, :3]) @ spacing[::-1])[::-1])
    box = [(0, length) for length in array.shape]
    if spec.crop_foreground is not None:
        box = _foreground(volume.path, array, black, white, spec.crop_foreground)
    axes = [
        _axis(volume.path, spec, number, length, box[number], None if spacing is None else spacing[number])
        for number, length in enumerate(array.shape)
    ]
    values = _resample(array, axes, black, white, spec.levels)
    scales, shifts = [axis.scale for axis in axes[::-1]], [axis.shift for axis in axes[::-1]]
    fitting = np.hstack([np.diag(scales), np.array(shifts)[:, None]])
    if spacing is not None:
        spacing = tuple(step / axis.scale for step, axis in zip(spacing, axes, strict=True))
    to_spec = chain(volume.original.to_canonical, to_oriented, fitting)
    return Fitted(values, to_spec, volume.original.size, spacing, volume.oriented)


def _foreground(path: str, array: np.ndarray, black: float, white: float, share: float) -> list[tuple[int, int]]:
    """Return (start, stop) per axis of the smallest box that holds every value above `share` of the window."""
    threshold = black + share * (white - black)
    if array.dtype.kind in "iu":
        threshold = math.floor(threshold)  # the same question in whole numbers, much faster
    order, source, _ = _as_stored(array)
    depth, height, width = source.shape
    first = next((index for index in range(depth) if (source[index] > threshold).any()), None)
    if first is None:
        raise ImageError(
            path,
            f"has no foreground: no value is above {threshold:g}, {share:g} of the window {black:g}..{white:g}; check "
            "the file's intensities, or the spec's window and crop_foreground",
        )
    last = next(index for index in range(depth - 1, -1, -1) if (source[index] > threshold).any())
    top, bottom, left, right = height, 0, width, 0
    for plane in source[first : last + 1]:  # only what lies outside the box so far can change it
        top = min(top, _first(plane[:top] > threshold, 1, top))
        bottom = max(bottom, height - _first(plane[bottom:][::-1] > threshold, 1, height - bottom))
        left = min(left, _first(plane[:, :left] > threshold, 0, left))
        right = max(right, width - _first(plane[:, right:][:, ::-1] > threshold, 0, width - right))
    box = [(first, last + 1), (top, bottom), (left, right)]
    result = [(0, 0)] * 3
    for (start, stop), axis in zip(box, order, strict=True):
        flipped = array.strides[axis] < 0
        length = array.shape[axis]
        result[axis] = (length - stop, length - start) if flipped else (start, stop)
    return result


def _first(mask: np.ndarray, across: int, missing: int) -> int:
    """Return the first row (across=1) or column (across=0) that holds a True, `missing` if there is none."""
    lit = mask.any(across)
    return int(lit.argmax()) if lit.any() else missing


@dataclass(frozen=True, eq=False)
class _Axis:
    """How values along one axis of a result are made of neighbours along the source's.

    Attributes:
        first: int [n]: index of the first neighbour of each.
        weights: float64 [n, taps]: shares of `taps` neighbours; all zero is black, beyond the source.
        scale, shift: continuous source coordinate -> the result's.
    """

    first: np.ndarray
    weights: np.ndarray
    scale: float
    shift: float


def _axis(path: str, spec: VisionSpec, number: int, length: int, box: tuple[int, int], spacing: float | None) -> _Axis:
    """Put all steps of `spec` along one axis (0, 1, 2: depth, row, column) together."""
    start, stop = box
    axis = _picked(np.arange(start, stop), length, 1.0, -start)
    size = spec.size[number]
    if spec.spacing is not None:
        if spacing is None:
            raise ImageError(
                path,
                f"states no spacing, and this model wants {spec.spacing[number]:g} mm; give a file with geometry "
                "(NIfTI, NRRD, DICOM), or a spec without spacing",
            )
        # Rounded down as in published code (CT-CLIP), but rounding errors of the quotient do not cost a voxel.
        wanted = max(int((stop - start) * (spacing / spec.spacing[number]) + 1e-4), 1)
        if wanted > _LONGEST:
            raise ImageError(
                path,
                f"would become {wanted} voxels long at {spec.spacing[number]:g} mm (its spacing says {spacing:g} mm); "
                f"the limit is {_LONGEST}, check the file's spacing",
            )
        axis = _after(axis, _resized(stop - start, wanted, spec))
    given = len(axis.first)
    if spec.fit == "crop":
        return _after(axis, _centred(given, size))
    if number == 0 and spec.depth == "sample":
        return _after(axis, _nearest(given, size))
    return _after(axis, _resized(given, size, spec))


def _resized(length: int, size: int, spec: VisionSpec) -> _Axis:
    if size == length or spec.resample == "nearest":
        return _nearest(length, size)
    return _averaged(length, size) if spec.antialias and size < length else _linear(length, size)


def _nearest(length: int, size: int) -> _Axis:
    """Take the voxel in whose extent each new centre lies."""
    return _picked(((2 * np.arange(size) + 1) * length) // (2 * size), length, size / length, 0.0)


def _linear(length: int, size: int) -> _Axis:
    """Interpolate between the two nearest centres (torch's interpolate with align_corners=False)."""
    centre = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
    low = np.floor(centre).astype(np.int64)
    share = centre - low
    index = np.stack([low, np.minimum(low + 1, length - 1)], 1)
    return _banded(index, np.stack([1 - share, share], 1), length, size / length, 0.0)


def _averaged(length: int, size: int) -> _Axis:
    """Average over the extent of each new, larger voxel; one that is partly inside counts with that part."""
    step = length / size
    start = np.arange(size)[:, None] * step
    index = np.floor(start).astype(np.int64) + np.arange(math.ceil(step) + 1)
    inside = np.minimum(index + 1, start + step) - np.maximum(index, start)
    weights = np.where((inside > 1e-9) & (index < length), inside, 0.0)
    weights /= weights.sum(1, keepdims=True)
    return _banded(np.minimum(index, length - 1), weights, length, size / length, 0.0)


def _centred(length: int, size: int) -> _Axis:
    """Cut `size` out of the middle, or put the whole into the middle of black."""
    offset = (length - size) // 2 if length >= size else -((size - length) // 2)
    index = np.arange(size) + offset
    inside = (index >= 0) & (index < length)
    return _banded(np.clip(index, 0, length - 1)[:, None], inside[:, None].astype(float), length, 1.0, -offset)


def _picked(index: np.ndarray, length: int, scale: float, shift: float) -> _Axis:
    return _banded(index[:, None], np.ones((len(index), 1)), length, scale, shift)


def _after(axis: _Axis, then: _Axis) -> _Axis:
    """Return one step that does `axis`, then `then`; nothing between the two is ever computed."""
    middle = then.first[:, None] + np.arange(then.weights.shape[1])
    index = axis.first[middle][..., None] + np.arange(axis.weights.shape[1])
    weights = then.weights[..., None] * axis.weights[middle]
    rows, length = len(middle), int((axis.first + axis.weights.shape[1]).max())
    scale, shift = axis.scale * then.scale, axis.shift * then.scale + then.shift
    return _banded(index.reshape(rows, -1), weights.reshape(rows, -1), length, scale, shift)


def _banded(index: np.ndarray, weights: np.ndarray, length: int, scale: float, shift: float) -> _Axis:
    """Gather taps [n, k] anywhere below `length` into runs of neighbours, as short as they can be."""
    rows = np.arange(len(index))[:, None]
    used = index[rows, (weights != 0).argmax(1)[:, None]]
    index = np.where(weights == 0, used, index)
    taps = int((index.max(1) - index.min(1)).max()) + 1
    first = np.minimum(index.min(1), length - taps)
    band = np.zeros((len(index), taps))
    np.add.at(band, (rows, index - first[:, None]), weights)
    return _Axis(first, band, scale, shift)


def _as_stored(array: np.ndarray) -> tuple[list[int], np.ndarray, list[bool]]:
    """Return axes by falling stride, the array as memory has it (a view), and which of its axes had been reversed.

    Turned volumes are views with odd strides; going through them slice by slice would read memory many times.
    """
    order = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))
    flipped = [array.strides[axis] < 0 for axis in order]
    steps = tuple(slice(None, None, -1 if back else 1) for back in flipped)
    return order, array.transpose(order)[steps], flipped


def _resample(array: np.ndarray, axes: list[_Axis], black: float, white: float, levels: str) -> np.ndarray:
    """Clip to black..white, take the weighted sums along all axes, and store as `levels`."""
    order, source, flipped = _as_stored(array)
    firsts, weights = [], []
    cuts: list[slice] = []
    for axis, back in zip(order, flipped, strict=True):
        first, shares = axes[axis].first, axes[axis].weights.astype(np.float32)
        taps = shares.shape[1]
        if back:
            first, shares = array.shape[axis] - taps - first, shares[:, ::-1]
        cuts.append(slice(int(first.min()), int(first.max()) + taps))
        firsts.append(first - cuts[-1].start)
        weights.append(shares)
    source = source[tuple(cuts)]
    values = np.empty([len(axis.first) for axis in axes], np.uint8 if WHITE[levels] == 255 else np.int16)
    target = values.transpose(order)
    gain = np.float32(WHITE[levels] / (white - black))
    rounding = np.float32(_NEARLY if levels == "uint8_floor" else 0.5)

    @lru_cache(maxsize=2)  # neighbours in the result often share a slice
    def windowed(index: int) -> np.ndarray:
        plane = np.subtract(source[index], np.float32(black), dtype=np.float32)
        np.fmax(plane, 0, out=plane)  # NaN becomes black
        return np.minimum(plane, np.float32(white - black), out=plane)

    for out, first, shares in zip(target, *[firsts[0].tolist(), weights[0]], strict=True):
        taps = [(windowed(first + tap), share) for tap, share in enumerate(shares) if share]
        if not taps:
            out[...] = 0
            continue
        plane = np.multiply(*taps[0])
        for other, share in taps[1:]:
            plane += other * share
        plane = _summed(_summed(plane, firsts[1], weights[1], 0), firsts[2], weights[2], 1)
        plane *= gain
        plane += rounding
        out[...] = plane
    return values


def _summed(plane: np.ndarray, first: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Take the weighted sums along one axis of a slice: float32 [h, w] -> [n, w] (axis 0) or [h, n] (axis 1)."""
    result = None
    for tap, shares in enumerate(weights.T):
        part = np.take(plane, first + tap, axis)
        part *= shares[:, None] if axis == 0 else shares
        result = part if result is None else np.add(result, part, out=result)
    return result
