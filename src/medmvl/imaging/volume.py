"""A volume as it was read: values in one canonical orientation, and the way back to the file's own frame."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmvl.imaging.picture import ImageError

CANONICAL = "SPL"
"""Where the indices of [D, H, W] grow to: superior, posterior, the patient's left."""

MAX_VOXELS = int(os.environ.get("MEDMVL_MAX_VOXELS", 2**30))
"""The largest volume that is read: 1024 slices of 1024 x 1024, 2 GB as int16; more is taken for a damaged header."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The grid of a file, before it was brought to the canonical orientation. Boxes of samples are given in it.

    Attributes:
        size: (depth, height, width): voxels along the file's z, y and x; x is the axis stored fastest (NIfTI's i).
        spacing: (z, y, x) in mm, None where the file states none.
        origin: centre of the first voxel in the patient (x to the left, y to posterior, z to superior; mm), or None.
        direction: unit vectors in the patient along the file's x, y and z, one after the other (9 numbers), or None.
        to_canonical: float64 [3, 4], continuous (x, y, z) of this frame -> of `Volume.array` (see `geometry`).
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    origin: tuple[float, float, float] | None
    direction: tuple[float, ...] | None
    to_canonical: np.ndarray


@dataclass(frozen=True, eq=False)
class Volume:
    """One CT or MRI volume.

    Attributes:
        array: [D, H, W], uint8, int16, uint16 or float32, values after rescaling (HU for CT); indices grow to superior,
            posterior and the patient's left, as near as whole axes allow: nothing is resampled. Where `direction` is
            None the file does not say where its axes point: they are as stored, and left and right are unknown.
        spacing: (slice, row, column) spacing in mm, or None where the file states none.
        origin: centre of voxel [0, 0, 0] in the patient (x to the left, y to posterior, z to superior; mm), or None.
        direction: unit vectors in the patient along the width, height and depth axes, one after the other (9 numbers;
            near (1,0,0, 0,1,0, 0,0,1) by construction), or None.
        modality: DICOM modality ("CT", "MR", ...), "" where unknown.
        unit: "HU"; "0..255" or "0..1" for arrays already scaled for display; "" for arbitrary units.
        path: the file or folder it came from, as given.
        original: the file's own frame.
    """

    array: np.ndarray
    spacing: tuple[float, float, float] | None
    origin: tuple[float, float, float] | None
    direction: tuple[float, ...] | None
    modality: str
    unit: str
    path: str
    original: Frame

    @property
    def size(self) -> tuple[int, int, int]:
        """(depth, height, width) of `array`; boxes refer to `original.size`."""
        return self.array.shape[0], self.array.shape[1], self.array.shape[2]

    @property
    def oriented(self) -> bool:
        """Whether the file says where left is."""
        return self.direction is not None


def check_voxels(path: str | Path, size: Sequence[int]) -> None:
    """Refuse a size that would exhaust memory, before anything is allocated.

    Args:
        path: the file or folder, for the message.
        size: (depth, height, width) as its header states.

    Raises:
        ImageError: more than `MAX_VOXELS` voxels, or a side has no length.
    """
    stated = " x ".join(str(side) for side in size)
    if min(size) < 1:
        raise ImageError(path, f"the volume has no voxels: its header says {stated} (depth x height x width)")
    if math.prod(int(side) for side in size) > MAX_VOXELS:
        raise ImageError(
            path,
            f"its header says {stated} (depth x height x width), more than the {MAX_VOXELS:,} voxels that protect from "
            "damaged headers; cut the volume into smaller ones, or, if you trust the file, set the environment "
            "variable MEDMVL_MAX_VOXELS to a larger number",
        )
