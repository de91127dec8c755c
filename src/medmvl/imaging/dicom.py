"""Reads one frame of a DICOM file through pydicom, and no element that could name a patient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut

from medmvl.core.log import get_logger
from medmvl.imaging.dicom_file import (
    check_picture,
    clear_errors,
    decode,
    group,
    numbers,
    padding,
    placed,
    read_header,
    rescale,
    unit_name,
)
from medmvl.imaging.picture import WINDOW_FUNCTIONS, ImageError, Lut, Picture, Window, check_pixels, choose_frame

_log = get_logger(__name__)


def read_dicom(path: Path, frame: int | None) -> Picture:
    """Read one frame.

    Monochrome values pass the modality transform (rescale or lookup table) and keep their unit; the first VOI lookup
    table, or else the first window, becomes `Picture.shown`. Padding takes the value that shows as black. Colour
    (RGB, YBR_FULL, YBR_FULL_422, YBR_ICT, YBR_RCT, palette) becomes RGB. In enhanced files the frame's own functional
    groups win over the shared ones. Spacing is PixelSpacing, else ImagerPixelSpacing (at the detector). Where the file
    places the picture in the patient, origin and direction say so.

    Raises:
        ImageError: not DICOM, no picture in it, cut off, too large, a transfer syntax without decoder, no such frame.
    """
    with clear_errors(path), path.open("rb") as file:
        header = read_header(path, file)
        pixels_at = file.tell()
        check_picture(path, header)
        index = choose_frame(path, int(header.get("NumberOfFrames") or 1), frame)
        check_pixels(path, int(header.Rows), int(header.Columns))
        stored = decode(path, file, header, index, pixels_at)
        return _to_picture(path, header, stored, index)


def _to_picture(path: Path, header: Dataset, stored: np.ndarray, index: int) -> Picture:
    photometric = header.PhotometricInterpretation
    common = {
        "spacing": _spacing(header, index),
        "origin": placed(header, index, "PlanePositionSequence", "ImagePositionPatient", 3),
        "direction": placed(header, index, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
        "modality": str(header.get("Modality") or ""),
        "path": str(path),
        "original": (int(header.Rows), int(header.Columns)),
    }
    if photometric == "PALETTE COLOR":
        array = apply_color_lut(stored, header)[..., :3]
        if array.dtype == np.uint16 and array.max() <= 255:
            array = array.astype(np.uint8)  # 8-bit entries in 16-bit tables, which some writers make
        return Picture(array, shown=None if array.dtype == np.uint8 else Window.between(0, 65535), **common)
    if stored.ndim == 3:
        return _color(path, header, stored, common)
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(path, f"photometric interpretation {photometric!r} is not supported for one sample per pixel")
    stored = _fill_padding(header, stored)
    values, unit = _modality_values(path, header, stored, index)
    shown = _voi(path, header, index)
    bits = int(header.get("BitsStored") or header.BitsAllocated)
    if values.dtype == np.uint16 and values is stored and bits <= 8:
        values = values.astype(np.uint8)
    if shown is None and values.dtype == np.uint8 and bits < 8:
        shown = Window.between(0, 2**bits - 1)
    return Picture(values, unit=unit, shown=shown, inverted=photometric == "MONOCHROME1", **common)


def _color(path: Path, header: Dataset, stored: np.ndarray, common: dict[str, Any]) -> Picture:
    photometric = header.PhotometricInterpretation
    if photometric not in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT") or stored.shape[-1] != 3:
        raise ImageError(
            path,
            f"colour as {photometric!r} with {stored.shape[-1]} samples is not supported; supported are RGB, YBR_FULL, "
            "YBR_FULL_422, YBR_ICT, YBR_RCT and PALETTE COLOR",
        )
    if stored.dtype == np.uint8:
        return Picture(stored, **common)
    bits = int(header.BitsStored)
    array = stored if stored.dtype == np.uint16 else stored.astype(np.float32)
    return Picture(array, shown=Window.between(0, 2**bits - 1), **common)


def _fill_padding(header: Dataset, stored: np.ndarray) -> np.ndarray:
    """Give padded pixels the darkest real value: they measure nothing and must not widen the range."""
    padded = padding(header, stored)
    if padded is None or padded.all():
        return stored
    real = stored[~padded]
    darkest = real.max() if header.PhotometricInterpretation == "MONOCHROME1" else real.min()
    return np.where(padded, darkest, stored)


def _modality_values(path: Path, header: Dataset, stored: np.ndarray, index: int) -> tuple[np.ndarray, str]:
    """Return the values after the modality transform as uint8, uint16 or float32, and their unit."""
    sequence = header.get("ModalityLUTSequence")
    if sequence:
        lut = _lut(path, header, sequence[0])
        values = lut.entries[np.clip(stored.astype(np.int64) - lut.first, 0, len(lut.entries) - 1)]
        return values, unit_name(sequence[0].get("ModalityLUTType"))
    found = rescale(path, header, index)
    if found is None:
        return _plain(stored), ""
    slope, intercept, unit = found
    if slope == 1 and intercept == 0:
        return _plain(stored), unit
    values = np.multiply(stored, np.float64(slope), dtype=np.float64)
    values += intercept
    return values.astype(np.float32), unit


def _plain(stored: np.ndarray) -> np.ndarray:
    return stored if stored.dtype in (np.uint8, np.uint16) else stored.astype(np.float32)


def _voi(path: Path, header: Dataset, index: int) -> Window | Lut | None:
    voi = group(header, index, "FrameVOILUTSequence")
    sequence = voi.get("VOILUTSequence")
    if sequence and sequence[0].get("LUTData") is not None:
        return _lut(path, header, sequence[0])
    center, width = _first(voi.get("WindowCenter")), _first(voi.get("WindowWidth"))
    if center is None or width is None:
        return None
    function = str(voi.get("VOILUTFunction") or "LINEAR").strip().upper()
    if width <= 0 or function not in WINDOW_FUNCTIONS:
        _log.warning("%s: its window (%s of width %g) means nothing; shown over its own range", path, function, width)
        return None
    if width < 1 and function == "LINEAR":
        # Writers of small values (PET, maps) state such widths without naming the function that allows them.
        function = "LINEAR_EXACT"
    return Window(center, width, function)


def _lut(path: Path, header: Dataset, item: Dataset) -> Lut:
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count & 0xFFFF or 2**16
    if first > 32767 and header.get("PixelRepresentation") == 1:
        first -= 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if header.original_encoding[1] is not False else ">"
        entries = np.frombuffer(data, np.uint8 if len(data) < 2 * count else f"{order}u2")
    else:
        entries = np.asarray(data).astype(np.int64) & 0xFFFF
    if len(entries) < count or not 8 <= bits <= 16:
        raise ImageError(path, f"its lookup table holds {len(entries)} of {count} entries of {bits} bits; repair it")
    entries = entries[:count].astype(np.uint8 if bits == 8 else np.uint16)
    return Lut(first, entries, 2**bits - 1)


def _spacing(header: Dataset, index: int) -> tuple[float, float] | None:
    measured = group(header, index, "PixelMeasuresSequence").get("PixelSpacing")
    for value in (measured, header.get("ImagerPixelSpacing"), header.get("NominalScannedPixelSpacing")):
        found = numbers(value, 2)
        if found is not None and min(found) > 0:
            return found[0], found[1]
    return None


def _first(value: object) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return float(value[0]) if len(value) else None
    return float(value)
