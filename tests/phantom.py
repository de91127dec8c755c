"""A marked phantom: a small volume whose every voxel is unmistakable, in all 48 orientations of its axes.

The orientations are made by SimpleITK's own filter, not by the code under test. An orientation is named by three
letters, where depth, row and column indices grow to (as in `VisionSpec.orientation`); "SPL" is the canonical one.
"""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import SimpleITK as sitk

CANONICAL = "SPL"
SIZE = (6, 10, 8)
"""Voxels from foot to head, from front to back, from right to left."""
SPACING = (3.0, 0.75, 1.25)
"""(depth, row, column) in mm."""
ORIGIN = (-41.5, 12.25, -130.0)
"""Centre of the canonical voxel [0, 0, 0]: x to the left, y to posterior, z to superior; mm."""
STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

MARK = 2000
"""The value of one block of voxels, which `BOX` encloses."""
BOX = (5.0, 1.0, 3.0, 8.0, 3.0, 5.0)
"""(x0, y0, z0, x1, y1, z1) of the block in the canonical frame: left, front, towards the head."""

ORIENTATIONS: tuple[str, ...] = tuple(
    "".join(letters) for axes in permutations(("SI", "PA", "LR")) for letters in product(*axes)
)


def values() -> np.ndarray:
    """int16 [D, H, W] in the canonical frame, like a CT: no two voxels outside the block are equal.

    Values grow towards the head most, then towards the back, then to the left; air fills the first corner.
    """
    array = np.arange(np.prod(SIZE), dtype=np.int16).reshape(SIZE) - 100
    array[0, 0, :3] -= 900
    x0, y0, z0, x1, y1, z1 = (int(edge) for edge in BOX)
    array[z0:z1, y0:y1, x0:x1] = MARK
    return array


def image(orientation: str = CANONICAL, array: np.ndarray | None = None) -> sitk.Image:
    """Return the phantom with its axes laid as `orientation` says; the patient in it does not move.

    Args:
        orientation: one of `ORIENTATIONS`.
        array: other values [D, H, W] in the canonical frame.
    """
    straight = sitk.GetImageFromArray(values() if array is None else array)
    straight.SetSpacing(SPACING[::-1])
    straight.SetOrigin(ORIGIN)
    straight.SetDirection(STRAIGHT)
    return sitk.DICOMOrient(straight, orientation[::-1])  # ITK names x first


def box(stored: np.ndarray) -> tuple[float, ...]:
    """Return the box of the marked block in a file's own array [z, y, x], found by its values."""
    found = np.argwhere(stored == MARK)
    return (*found.min(0)[::-1].astype(float).tolist(), *(found.max(0)[::-1] + 1.0).tolist())


def write(path: Path, orientation: str = CANONICAL, array: np.ndarray | None = None) -> Path:
    """Write the phantom to a file; its suffix (.nii.gz, .nrrd, .mha, ...) names the format."""
    sitk.WriteImage(image(orientation, array), str(path))
    return path
