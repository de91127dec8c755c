"""Affine maps between picture frames, and how boxes travel through them.

Convention of the whole room: coordinates are continuous, x to the right and y down, measured from the picture's upper
left corner. The pixel of column i and row j covers [i, i+1] x [j, j+1]; its centre is (i + 0.5, j + 0.5). A box is
(x0, y0, x1, y1), edges included, so the whole picture is (0, 0, width, height) and a resize is a pure scaling.
An affine is a float64 array [2, 3] that sends (x, y, 1) to (x', y').
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Box2D = tuple[float, float, float, float]


def scaling(x: float, y: float) -> np.ndarray:
    """Return the affine [2, 3] that multiplies coordinates by `x` and `y`."""
    return np.array([[x, 0.0, 0.0], [0.0, y, 0.0]])


def translation(x: float, y: float) -> np.ndarray:
    """Return the affine [2, 3] that adds `x` and `y`, in pixels."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def rotation(degrees: float) -> np.ndarray:
    """Return the affine [2, 3] that turns around the origin, clockwise on screen for positive degrees."""
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0]])


def chain(*affines: np.ndarray) -> np.ndarray:
    """Return one affine [2, 3] that applies `affines` one after the other, the first one first."""
    result = np.eye(3)
    for affine in affines:
        result = _square(affine) @ result
    return result[:2]


def invert(affine: np.ndarray) -> np.ndarray:
    """Return the affine [2, 3] that undoes `affine`."""
    return np.linalg.inv(_square(affine))[:2]


def transform_box(coords: Sequence[float], affine: np.ndarray, size: tuple[int, int] | None = None) -> Box2D:
    """Send a box through an affine and return the upright box around the result.

    Args:
        coords: (x0, y0, x1, y1) in the frame the affine comes from.
        affine: float array [2, 3]; its inverse (`invert`) brings predictions back to the file's frame.
        size: (height, width) of the target frame; given, the box is clipped to it, and a box that lies outside
            becomes one without area on the nearest edge.

    Returns:
        (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1.

    Raises:
        ValueError: `coords` are not four numbers.
    """
    if len(coords) != 4:
        raise ValueError(f"a 2D box has 4 coordinates (x0, y0, x1, y1), got {len(coords)}: {tuple(coords)}")
    x0, y0, x1, y1 = coords
    corners = np.array([[x0, x1, x0, x1], [y0, y0, y1, y1], [1.0, 1.0, 1.0, 1.0]])
    xs, ys = affine @ corners
    if size is not None:
        height, width = size
        xs, ys = np.clip(xs, 0.0, width), np.clip(ys, 0.0, height)
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def _square(affine: np.ndarray) -> np.ndarray:
    return np.vstack([affine, [0.0, 0.0, 1.0]])
