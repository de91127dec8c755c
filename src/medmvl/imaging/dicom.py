"""Reads one frame of a DICOM file through pydicom, and no element that could name a patient."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from medmvl.core.log import get_logger
from medmvl.imaging.picture import WINDOW_FUNCTIONS, ImageError, Lut, Picture, Window, check_pixels, choose_frame

_log = get_logger(__name__)

# Everything that is read besides the pixels: pydicom skips all other elements, names and dates among them.
_ELEMENTS = [
    "SOPClassUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "ImagePositionPatient", "ImageOrientationPatient",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    *(f"{color}PaletteColorLookupTable{part}" for color in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
]  # fmt: skip
_JPEG_BY_PILLOW = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000, JPEG2000Lossless)
_JPEG_BY_GDCM = (JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless)
_PIXELS = ["PixelData", "FloatPixelData", "DoubleFloatPixelData"]


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
    try:
        with path.open("rb") as file:
            header = _read_header(path, file)
            pixels_at = file.tell()
            _check_picture(path, header)
            index = choose_frame(path, int(header.get("NumberOfFrames") or 1), frame)
            check_pixels(path, int(header.Rows), int(header.Columns))
            stored = _decode(path, file, header, index, pixels_at)
        stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        return _to_picture(path, header, stored, index)
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(path, f"could not be read ({error}); get the file again") from error
    except Exception as error:
        # pydicom converts elements on use, so a malformed one can fail anywhere above, in many ways.
        raise ImageError(
            path, f"a DICOM element is missing or malformed ({_reason(error)}); repair the header"
        ) from None


def _read_header(path: Path, file: BinaryIO) -> Dataset:
    try:
        return dcmread(file, stop_before_pixels=True, specific_tags=_ELEMENTS)
    except InvalidDicomError:
        pass
    except Exception as error:
        reason = _reason(error)
        raise ImageError(path, f"its DICOM header is damaged or cut off ({reason}); get the file again") from None
    # Old files have no preamble: they start with an element of group 2 or 8.
    file.seek(0)
    if file.read(2) not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        raise ImageError(path, "is no DICOM file (no DICM mark and no DICOM element at its start)")
    file.seek(0)
    try:
        return dcmread(file, stop_before_pixels=True, specific_tags=_ELEMENTS, force=True)
    except Exception as error:
        raise ImageError(path, f"is no readable DICOM file ({_reason(error)}); get the file again") from None


def _check_picture(path: Path, header: Dataset) -> None:
    needed = ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
    if all(header.get(element) not in (None, "") for element in needed):
        return
    kind = UID(header.get("SOPClassUID") or "").name or "of unknown kind"
    raise ImageError(path, f"is a DICOM file without a picture ({kind}); leave it out of the samples")


def _decode(path: Path, file: BinaryIO, header: Dataset, index: int, pixels_at: int) -> np.ndarray:
    """Return the stored values of one frame, [H, W] or [H, W, 3]; YBR_FULL is RGB already."""
    meta = getattr(header, "file_meta", None) or FileMetaDataset()
    syntax = UID(meta.get("TransferSyntaxUID") or _syntax_of(header))
    if syntax in _JPEG_BY_GDCM:
        _check_codestream(path, file, header, index, pixels_at)
    several_deep = header.get("SamplesPerPixel", 1) > 1 and header.BitsAllocated > 8
    # Pillow where it can: a damaged codestream makes it raise, where gdcm may end the process.
    plugin = "pillow" if syntax in _JPEG_BY_PILLOW and not several_deep else ""
    try:
        # Reads this frame only.
        return pixel_array(file, index=index, transfer_syntax_uid=syntax, decoding_plugin=plugin)
    except Exception as first:
        try:
            # A header that contradicts its transfer syntax is understood only by the parser of whole files.
            file.seek(0)
            whole = dcmread(file, specific_tags=[*_ELEMENTS, *_PIXELS], force=True)
            whole.file_meta = meta
            meta.TransferSyntaxUID = syntax
            return pixel_array(whole, index=index, decoding_plugin=plugin)
        except Exception:  # gdcm, Pillow and pydicom raise many kinds for damaged pixel data
            raise ImageError(
                path,
                f"frame {index} cannot be decoded ({syntax.name}: {_reason(first)}); the file is cut off or damaged, "
                "or its compression has no decoder here: convert it to Explicit VR Little Endian",
            ) from None


def _check_codestream(path: Path, file: BinaryIO, header: Dataset, index: int, pixels_at: int) -> None:
    """Refuse a JPEG that contradicts the header: gdcm would end the process over it."""
    file.seek(pixels_at + 12)  # tag, VR, two spare bytes, length
    try:
        frame = get_frame(file, index, number_of_frames=int(header.get("NumberOfFrames") or 1))
    except Exception:
        return  # the decoder says it better
    stated = (int(header.Rows), int(header.Columns), int(header.get("SamplesPerPixel", 1)))
    found = _jpeg_frame(frame)
    if found is None or found[:3] != stated or not 2 <= found[3] <= int(header.BitsAllocated):
        given = "no picture" if found is None else f"{found[:3]} and {found[3]} bits"
        raise ImageError(
            path,
            f"frame {index} is damaged: its JPEG holds {given}, its header says {stated} (rows, columns, samples) in "
            f"{header.BitsAllocated} bits; get the file again",
        )


def _jpeg_frame(data: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, components and bits that a JPEG or JPEG-LS codestream states.

    None when its markers do not lead to a start of frame and from there to a start of scan.
    """
    position, found = 2, None
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # fill, or a marker without a body
            position += 1 if marker == 0xFF else 2
            continue
        if marker < 0xC0 or marker == 0xDA:  # no marker at all, or the start of the scan
            return found if marker == 0xDA else None
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, rows, columns, components = struct.unpack_from(">BHHB", data, position + 4)
            found = rows, columns, components, bits
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _reason(error: Exception) -> str:
    """What went wrong, in one line, without bytes of the file: they could hold a name."""
    text = " ".join(str(error).split())[:300]
    return type(error).__name__ if not text or re.search(r"\bb['\"]", text) else text


def _syntax_of(header: Dataset) -> UID:
    """The transfer syntax of a file that does not state it, from how its header had to be parsed."""
    implicit, little = header.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _to_picture(path: Path, header: Dataset, stored: np.ndarray, index: int) -> Picture:
    photometric = header.PhotometricInterpretation
    common = {
        "spacing": _spacing(header, index),
        "origin": _placed(header, index, "PlanePositionSequence", "ImagePositionPatient", 3),
        "direction": _placed(header, index, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
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
    """Give padded pixels the darkest real value: they measure nothing and must not widen the range.

    PixelPaddingValue and PixelPaddingRangeLimit are stored values, both ends included (PS3.3 C.7.5.1.1.2).
    """
    padding = header.get("PixelPaddingValue")
    if not isinstance(padding, int):
        return stored
    limit = header.get("PixelPaddingRangeLimit")
    low, high = sorted((padding, limit if isinstance(limit, int) else padding))
    padded = (stored >= low) & (stored <= high)
    if not padded.any() or padded.all():
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
        return values, _unit(sequence[0].get("ModalityLUTType"))
    rescale = _macro(header, index, "PixelValueTransformationSequence")
    slope, intercept = rescale.get("RescaleSlope"), rescale.get("RescaleIntercept")
    if slope is None or intercept is None:
        return _plain(stored), ""
    if slope == 0:
        raise ImageError(path, "its RescaleSlope is 0, which makes all pixels equal; repair the header")
    unit = _unit(rescale.get("RescaleType") or ("HU" if header.get("Modality") == "CT" else ""))
    if slope == 1 and intercept == 0:
        return _plain(stored), unit
    values = np.multiply(stored, np.float64(slope), dtype=np.float64)
    values += float(intercept)
    return values.astype(np.float32), unit


def _plain(stored: np.ndarray) -> np.ndarray:
    return stored if stored.dtype in (np.uint8, np.uint16) else stored.astype(np.float32)


def _unit(name: object) -> str:
    """DICOM's "US" means unspecified."""
    return "" if name in (None, "", "US") else str(name)


def _voi(path: Path, header: Dataset, index: int) -> Window | Lut | None:
    voi = _macro(header, index, "FrameVOILUTSequence")
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
    measured = _macro(header, index, "PixelMeasuresSequence").get("PixelSpacing")
    for value in (measured, header.get("ImagerPixelSpacing"), header.get("NominalScannedPixelSpacing")):
        found = _numbers(value, 2)
        if found is not None and min(found) > 0:
            return found[0], found[1]
    return None


def _placed(header: Dataset, index: int, macro: str, element: str, count: int) -> tuple[float, ...] | None:
    """Return where a frame lies; a place at the top level of a file of several frames is that of the first."""
    holder = _macro(header, index, macro)
    return None if holder is header and index else _numbers(holder.get(element), count)


def _numbers(value: object, count: int) -> tuple[float, ...] | None:
    """Return the numbers of an element that holds `count` of them, else None."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == count:
        return tuple(float(number) for number in value)
    return None


def _macro(header: Dataset, index: int, name: str) -> Dataset:
    """Return the functional group `name` of the frame, else the shared one, else the top level of the file."""
    frames, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    holders = ([frames[index]] if frames and index < len(frames) else []) + ([shared[0]] if shared else [])
    for holder in holders:
        if holder.get(name):
            return holder[name][0]
    return header


def _first(value: object) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return float(value[0]) if len(value) else None
    return float(value)
