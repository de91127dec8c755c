"""Reads the volume in one enhanced multi-frame DICOM file, whose frames say where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medmvl.imaging.dicom_file import clear_errors, decode_all, group, has_picture, read_header
from medmvl.imaging.hounsfield import HuSource
from medmvl.imaging.picture import ImageError
from medmvl.imaging.slices import fill
from medmvl.imaging.stack import SLICE_ELEMENTS, Plane, Stack, plane, stack
from medmvl.imaging.volume import Volume, check_voxels

# What sets apart frames at one place: functional group, element, name in messages.
_TELLS = (
    ("FrameContentSequence", "StackID", "stack"),
    ("FrameContentSequence", "TemporalPositionIndex", "temporal position"),
    ("FrameContentSequence", "FrameAcquisitionNumber", "acquisition number"),
    ("MREchoSequence", "EffectiveEchoTime", "echo time"),
    ("MRDiffusionSequence", "DiffusionBValue", "diffusion b-value"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", "trigger delay"),
    ("MRImageFrameTypeSequence", "FrameType", "frame type"),
    ("CTImageFrameTypeSequence", "FrameType", "frame type"),
)


def read_multiframe(path: Path, hu: HuSource | None = None) -> Volume | None:
    """Read the frames of one file as a volume.

    The same rules as for `read_series` hold; each frame's own functional groups win over the shared ones.

    Args:
        path: the file.
        hu: where HU come from, see `hounsfield.choose`; None: from the header, frame by frame.

    Returns:
        The volume, its own frame as `read_series` describes; None where the file is none: one frame only, or frames
        that do not state their places, or all the same one (a film).

    Raises:
        ImageError: no DICOM, damaged, or its frames make no straight, gapless volume: several stacks, times, echoes;
            missing or uneven slices; mixed orientations.
    """
    with clear_errors(path), path.open("rb") as file:
        header = read_header(path, file, SLICE_ELEMENTS)
        pixels_at = file.tell()
        planes = _planes(path, header) if has_picture(header) else []
        if len({one.position for one in planes} - {None}) < 2:
            return None
        check_voxels(path, (len(planes), *planes[0].size))
        stacks = sorted({one.tells["stack"] for one in planes if "stack" in one.tells})
        if len(stacks) > 1:
            raise ImageError(
                path,
                f"holds {len(stacks)} stacks ({', '.join(stacks)}), each a volume; save them as files of their own",
            )
        laid = stack(path, planes)
        return fill(path, laid, _in_place(laid, decode_all(path, file, header, pixels_at)), hu)


def _planes(path: Path, header: Dataset) -> list[Plane]:
    count, frames = int(header.get("NumberOfFrames") or 1), header.get("PerFrameFunctionalGroupsSequence")
    if count < 2 or not frames:
        return []
    if len(frames) != count:
        raise ImageError(path, f"describes {len(frames)} frames and says it holds {count}; get the file again")
    return [plane(path, f"frame {index}", header, index, _tells(header, index)) for index in range(count)]


def _tells(header: Dataset, index: int) -> dict[str, object]:
    found = ((name, group(header, index, macro).get(element)) for macro, element, name in _TELLS)
    return {name: value for name, value in found if value is not None}


def _in_place(laid: Stack, frames: Iterator[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    places = {one.index: place for place, one in enumerate(laid.planes)}
    return ((places[index], stored) for index, stored in enumerate(frames))
