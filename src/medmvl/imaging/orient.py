"""Axes of volumes: which way they point in the patient, and turning them without touching a value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medmvl.imaging.geometry import chain, identity
from medmvl.imaging.volume import CANONICAL, Frame, Volume

# Patient axes x, y, z (DICOM's LPS): the letter of the positive and of the negative end.
_ENDS = ("LR", "PA", "SI")


def from_file(
    array: np.ndarray,
    spacing: Sequence[float] | None,
    origin: Sequence[float] | None,
    direction: Sequence[float] | None,
    path: str | Path,
    modality: str = "",
    unit: str = "",
) -> Volume:
    """Turn a volume in its file's frame into the canonical one.

    Args:
        array: [z, y, x] as the file has it.
        spacing: (z, y, x) in mm, or None.
        origin: centre of voxel [0, 0, 0] in the patient (LPS, mm), or None.
        direction: unit vectors in the patient (LPS) along the file's x, y and z, 9 numbers; None: unknown, so the axes
            stay as they are.
        path, modality, unit: see `Volume`.

    Returns:
        The volume; `array` is a view where that is possible.
    """
    size = (array.shape[0], array.shape[1], array.shape[2])
    steps = tuple(range(3)), (1, 1, 1)
    if direction is not None:
        steps = _turns(orientation_of(direction), CANONICAL)
    turned, back = _turn(array, *steps)
    frame = Frame(size, _floats(spacing), _floats(origin), _floats(direction), back)
    order, signs = steps
    if direction is not None:
        vectors = np.reshape(direction, (3, 3))[::-1]  # one row per array axis
        if origin is not None and spacing is not None:
            # The first canonical voxel is the file's last one along every axis that was turned round.
            ends = [(n - 1) * (sign < 0) for n, sign in zip(np.array(size)[list(order)], signs, strict=True)]
            offsets = np.array(ends) * np.array(spacing)[list(order)]
            origin = np.array(origin) + offsets @ vectors[list(order)]
        direction = (vectors[list(order)] * np.array(signs)[:, None])[::-1].ravel()
    spacing = None if spacing is None else [spacing[axis] for axis in order]
    return Volume(
        turned, _floats(spacing), _floats(origin), _floats(direction), modality, unit, str(path), original=frame
    )


def orientation_of(direction: Sequence[float]) -> str:
    """Return the letters that depth, row and column indices grow to, for unit vectors along x, y and z (9 numbers).

    Each axis takes the patient axis that it is nearest to, no two the same; the pairing with the largest sum wins.
    """
    vectors = np.reshape(direction, (3, 3))[::-1]
    orders = [(a, b, c) for a in range(3) for b in range(3) for c in range(3) if len({a, b, c}) == 3]
    best = max(orders, key=lambda order: sum(abs(vectors[axis, order[axis]]) for axis in range(3)))
    return "".join(_ENDS[end][int(vectors[axis, end] < 0)] for axis, end in enumerate(best))


def turned(array: np.ndarray, orientation: str) -> tuple[np.ndarray, np.ndarray]:
    """Bring a canonical array [D, H, W] to another orientation.

    Args:
        array: indices grow as `CANONICAL` says.
        orientation: three letters, see `VisionSpec.orientation`.

    Returns:
        The turned array (a view), and the affine [3, 4] from the given frame to the turned one (see `geometry`).
    """
    return _turn(array, *_turns(CANONICAL, orientation))


def _turns(given: str, wanted: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return for each wanted axis: which given one it is, and whether it runs the other way (-1)."""
    pairs = [next(ends for ends in _ENDS if letter in ends) for letter in given]
    order = tuple(next(i for i, ends in enumerate(pairs) if letter in ends) for letter in wanted)
    signs = tuple(1 if given[axis] == letter else -1 for axis, letter in zip(order, wanted, strict=True))
    return order, signs


def _turn(array: np.ndarray, order: Sequence[int], signs: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    flips = tuple(slice(None, None, sign) for sign in signs)
    affine = np.zeros((3, 4))
    for axis, (source, sign) in enumerate(zip(order, signs, strict=True)):
        affine[2 - axis, 2 - source] = sign
        affine[2 - axis, 3] = array.shape[source] if sign < 0 else 0.0
    return array.transpose(order)[flips], chain(identity(3), affine)


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)
