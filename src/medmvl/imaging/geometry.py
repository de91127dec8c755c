"""Affine maps between the frames of pictures and volumes, and how boxes travel through them.

Convention of the whole room: coordinates are continuous and measured in pixels or voxels from the frame's first corner,
x along the array's last axis, y along the one before it, z along the first of a volume. The pixel of column i and row j
covers [i, i+1] x [j, j+1]; its centre is (i + 0.5, j + 0.5). A box is (x0, y0, x1, y1), or (x0, y0, z0, x1, y1, z1),
edges included, so the whole picture is (0, 0, width, height) and a resize is a pure scaling. An affine is a float64
array [n, n+1], n the number of axes, that sends (x, y, 1) to (x', y'), (x, y, z, 1) to (x', y', z').
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np


def identity(axes: int) -> np.ndarray:
    """Return the affine [n, n+1] that changes nothing."""
    return np.eye(axes, axes + 1)


def scaling(*factors: float) -> np.ndarray:
    """Return the affine [n, n+1] that multiplies coordinates x, y(, z) by `factors`."""
    return np.hstack([np.diag(factors), np.zeros((len(factors), 1))])


def translation(*offsets: float) -> np.ndarray:
    """Return the affine [n, n+1] that adds `offsets` to x, y(, z)."""
    return np.hstack([np.eye(len(offsets)), np.array(offsets, dtype=float)[:, None]])


def rotation(degrees: float) -> np.ndarray:
    """Return the affine [2, 3] that turns around the origin, clockwise on screen for positive degrees."""
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0]])


def chain(first: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Return one affine [n, n+1] that applies the given ones one after the other, the first one first."""
    result = _square(first)
    for affine in others:
        result = _square(affine) @ result
    return result[:-1]


def invert(affine: np.ndarray) -> np.ndarray:
    """Return the affine [n, n+1] that undoes `affine`."""
    return np.linalg.inv(_square(affine))[:-1]


def transform_box(coords: Sequence[float], affine: np.ndarray, size: Sequence[int] | None = None) -> tuple[float, ...]:
    """Send a box through an affine and return the upright box around the result.

    Args:
        coords: (x0, y0, x1, y1) or (x0, y0, z0, x1, y1, z1) in the frame the affine comes from.
        affine: float array [n, n+1]; its inverse (`invert`) brings predictions back to the file's frame.
        size: (height, width) or (depth, height, width) of the target frame; given, the box is clipped to it, and a box
            that lies outside becomes one without extent on the nearest edge.

    Returns:
        As `coords`, lower corner first.

    Raises:
        ValueError: `coords` are not two corners in the affine's number of axes.
    """
    axes = len(affine)
    if len(coords) != 2 * axes:
        names = "(x0, y0, x1, y1)" if axes == 2 else "(x0, y0, z0, x1, y1, z1)"
        raise ValueError(f"a {axes}D box has {2 * axes} coordinates {names}, got {len(coords)}: {tuple(coords)}")
    corners = np.array([*product(*zip(coords[:axes], coords[axes:], strict=True))]).T
    moved = affine[:, :axes] @ corners + affine[:, axes:]
    if size is not None:
        moved = np.clip(moved, 0.0, np.array(size[::-1], dtype=float)[:, None])
    return (*moved.min(1).tolist(), *moved.max(1).tolist())


def beyond(coords: Sequence[float], size: Sequence[int]) -> Literal["", "partly", "outside"]:
    """Say whether a box leaves the frame it is given in by more than rounding does.

    Rounding is one pixel or voxel, or 1 % of the side, whichever is larger.

    Args:
        coords: as for `transform_box`, lower corner first.
        size: (height, width) or (depth, height, width) of the frame.

    Returns:
        "" for a box that keeps inside, "partly" for one that reaches out, "outside" for one that shares nothing with
        the frame.
    """
    axes = len(size)
    extent = np.array(size[::-1], dtype=float)
    low, high = np.array(coords[:axes]), np.array(coords[axes:])
    slack = np.maximum(1.0, 0.01 * extent)
    if not ((low < -slack) | (high > extent + slack)).any():
        return ""
    return "outside" if ((low >= extent) | (high <= 0)).any() else "partly"


def _square(affine: np.ndarray) -> np.ndarray:
    return np.vstack([affine, np.eye(len(affine) + 1)[-1]])
