"""A picture as it was read: values, how to show them, and its geometry; nothing that names a patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image


class ImageError(ValueError):
    """A file that cannot be read as a picture; the message names the file and what to do."""

    def __init__(self, path: str | Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = str(path)


WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True)
class Window:
    """A DICOM window (PS3.3 C.11.2.1.2): which values go from black to white.

    `function` is LINEAR (the standard's off-by-half form), LINEAR_EXACT (centre - width/2 is black, centre + width/2 is
    white) or SIGMOID. `center` and `width` are in the picture's own values, HU for CT.
    """

    center: float
    width: float
    function: str = "LINEAR"

    @classmethod
    def between(cls, low: float, high: float) -> Window:
        """Return the window that shows `low` as black and `high` as white."""
        return cls((low + high) / 2, high - low, "LINEAR_EXACT")


@dataclass(frozen=True, eq=False)
class Lut:
    """A DICOM VOI lookup table: value `first` shows entry 0; values beyond either end show the end's entry.

    `entries` is an integer array [n]; `high` is the entry that means white (2**bits - 1).
    """

    first: int
    entries: np.ndarray
    high: int


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture in its file's frame.

    Attributes:
        array: [H, W] or [H, W, 3]; uint8, uint16 or float32; values after the modality transform (HU for CT).
        spacing: (row, column) spacing in mm, or None where the file states none.
        origin: centre of the upper left pixel in the patient (x to the left, y to posterior, z to superior; mm), or
            None where the file does not place the picture in a patient.
        direction: unit vectors in the patient along a row (to the right) and along a column (down), six numbers as in
            DICOM's ImageOrientationPatient, or None.
        modality: DICOM modality ("CT", "MR", "CR", ...), "" where unknown.
        unit: "HU", another DICOM rescale type, or "" where unknown.
        path: the file it came from, with "#frame=n" for a frame of several.
        original: (height, width) as stored; differs from `array` only where EXIF turned the picture by 90 degrees.
        shown: the file's own window or lookup table; None = 8-bit values as they are, deeper ones over their own range
            (see `intensity.to_display`).
        inverted: small values are bright (DICOM MONOCHROME1, TIFF white-is-zero); `array` keeps the file's values.
    """

    array: np.ndarray
    spacing: tuple[float, float] | None = None
    origin: tuple[float, ...] | None = None
    direction: tuple[float, ...] | None = None
    modality: str = ""
    unit: str = ""
    path: str = ""
    original: tuple[int, int] | None = None
    shown: Window | Lut | None = None
    inverted: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frame that boxes refer to."""
        return self.array.shape[0], self.array.shape[1]


def check_pixels(path: str | Path, height: int, width: int) -> None:
    """Refuse a size that would exhaust memory, before anything is allocated.

    The limit is Pillow's own, for every format: twice `PIL.Image.MAX_IMAGE_PIXELS` (179 million pixels by default).

    Raises:
        ImageError: the limit is passed, or a side has no length.
    """
    if height < 1 or width < 1:
        raise ImageError(path, f"the picture has no pixels: its header says {height} x {width} (height x width)")
    if PIL.Image.MAX_IMAGE_PIXELS is not None and height * width > 2 * PIL.Image.MAX_IMAGE_PIXELS:
        raise ImageError(path, f"{height} x {width} pixels {TOO_LARGE}")


TOO_LARGE = (
    "are more than the limit that protects from decompression bombs; cut the picture into smaller ones, or, if you "
    "trust the file, raise PIL.Image.MAX_IMAGE_PIXELS"
)


def choose_frame(path: str | Path, num_frames: int, frame: int | None) -> int:
    """Return the index of the frame to read.

    Raises:
        ImageError: several frames and none asked for, or the one asked for does not exist.
    """
    last = num_frames - 1
    if frame is None and num_frames > 1:
        raise ImageError(
            path,
            f"holds {num_frames} frames and none was chosen; ask for one by the path '{path}#frame=0' "
            f"(0 to {last}) or by read_image(path, frame=0)",
        )
    if frame is not None and not 0 <= frame <= last:
        known = f"frames 0 to {last}" if last else "one frame, number 0"
        raise ImageError(path, f"has no frame {frame}; it holds {known}")
    return frame or 0
