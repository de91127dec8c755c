"""The parts of a DICOM file that pictures and volumes share: its header, one decoded frame, where a frame lies."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames, get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels import iter_pixels, pixel_array
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

from medmvl.imaging.picture import ImageError

# Everything that is read besides the pixels: pydicom skips all other elements, names and dates among them.
ELEMENTS = [
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
_ITEMS = 12
"""Bytes from the pixel element to its items: tag, VR, two spare bytes, length."""
_PIXELS = ["PixelData", "FloatPixelData", "DoubleFloatPixelData"]


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into an `ImageError` that names the file.

    pydicom's warnings about odd elements are off meanwhile: they repeat what the element holds, which may be a name.
    """
    try:
        with disable_value_validation():
            yield
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(path, f"could not be read ({error}); get the file again") from error
    except Exception as error:
        # pydicom converts elements on use, so a malformed one can fail anywhere, in many ways.
        raise ImageError(
            path, f"a DICOM element is missing or malformed ({_reason(error)}); repair the header"
        ) from None


class NoDicomError(ImageError):
    """A file whose start is not that of a DICOM file."""


def read_header(path: Path, file: BinaryIO, elements: list[str] = ELEMENTS) -> Dataset:
    """Read the named elements up to the pixels, where `file` is left.

    Raises:
        NoDicomError: the file does not start like DICOM.
        ImageError: its header is damaged or cut off.
    """
    try:
        return dcmread(file, stop_before_pixels=True, specific_tags=elements)
    except InvalidDicomError:
        pass
    except Exception as error:
        raise ImageError(
            path, f"its DICOM header is damaged or cut off ({_reason(error)}); get the file again"
        ) from None
    # Old files have no preamble: they start with an element of group 2 or 8.
    file.seek(0)
    if file.read(2) not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        raise NoDicomError(path, "is no DICOM file (no DICM mark and no DICOM element at its start)")
    file.seek(0)
    try:
        return dcmread(file, stop_before_pixels=True, specific_tags=elements, force=True)
    except Exception as error:
        raise ImageError(path, f"is no readable DICOM file ({_reason(error)}); get the file again") from None


def has_picture(header: Dataset) -> bool:
    """Whether the header describes pixels; reports, plans and directories of a disc do not."""
    needed = ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
    return all(header.get(element) not in (None, "") for element in needed)


def check_picture(path: Path, header: Dataset) -> None:
    """Refuse a file that `has_picture` says no to, and name its kind."""
    if has_picture(header):
        return
    kind = UID(header.get("SOPClassUID") or "").name or "of unknown kind"
    raise ImageError(path, f"is a DICOM file without a picture ({kind}); leave it out of the samples")


def decode(path: Path, file: BinaryIO, header: Dataset, index: int, pixels_at: int) -> np.ndarray:
    """Return the stored values of one frame, [H, W] or [H, W, 3]; YBR_FULL is RGB already."""
    meta = getattr(header, "file_meta", None) or FileMetaDataset()
    syntax, plugin = _decoder(header)
    if syntax in _JPEG_BY_GDCM:
        file.seek(pixels_at + _ITEMS)
        try:
            frame = get_frame(file, index, number_of_frames=int(header.get("NumberOfFrames") or 1))
        except Exception:
            frame = None  # the decoder says it better
        if frame is not None:
            _check_codestream(path, frame, header, index)
    try:
        # Reads this frame only.
        stored = pixel_array(file, index=index, transfer_syntax_uid=syntax, decoding_plugin=plugin)
    except Exception as first:
        try:
            # A header that contradicts its transfer syntax is understood only by the parser of whole files.
            file.seek(0)
            whole = dcmread(file, specific_tags=[*ELEMENTS, *_PIXELS], force=True)
            whole.file_meta = meta
            meta.TransferSyntaxUID = syntax
            stored = pixel_array(whole, index=index, decoding_plugin=plugin)
        except Exception:  # gdcm, Pillow and pydicom raise many kinds for damaged pixel data
            raise ImageError(path, _undecoded(index, syntax, first)) from None
    return _native(stored)


def decode_all(path: Path, file: BinaryIO, header: Dataset, pixels_at: int) -> Iterator[np.ndarray]:
    """Yield the stored values of all frames of a file, one after the other; see `decode`."""
    count = int(header.NumberOfFrames)
    syntax, plugin = _decoder(header)
    index = -1
    try:
        if syntax in _JPEG_BY_GDCM:
            file.seek(pixels_at + _ITEMS)
            for number, frame in enumerate(generate_frames(file, number_of_frames=count)):
                _check_codestream(path, frame, header, number)
        for stored in iter_pixels(file, decoding_plugin=plugin):
            index += 1
            yield _native(stored)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(path, _undecoded(index + 1, syntax, error)) from None
    if index + 1 != count:
        raise ImageError(path, f"holds {index + 1} frames, its header says {count}; get the file again")


def _decoder(header: Dataset) -> tuple[UID, str]:
    """Return the transfer syntax of a file and the plugin that decodes it, "" for any."""
    meta = getattr(header, "file_meta", None) or FileMetaDataset()
    syntax = UID(meta.get("TransferSyntaxUID") or syntax_of(header))
    several_deep = header.get("SamplesPerPixel", 1) > 1 and header.BitsAllocated > 8
    # Pillow where it can: a damaged codestream makes it raise, where gdcm may end the process.
    return syntax, "pillow" if syntax in _JPEG_BY_PILLOW and not several_deep else ""


def _undecoded(index: int, syntax: UID, error: Exception) -> str:
    return (
        f"frame {index} cannot be decoded ({syntax.name}: {_reason(error)}); the file is cut off or damaged, "
        "or its compression has no decoder here: convert it to Explicit VR Little Endian"
    )


def _native(stored: np.ndarray) -> np.ndarray:
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _check_codestream(path: Path, frame: bytes, header: Dataset, index: int) -> None:
    """Refuse a JPEG that contradicts the header: gdcm would end the process over it."""
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


def syntax_of(header: Dataset) -> UID:
    """The transfer syntax of a file that does not state it, from how its header had to be parsed."""
    implicit, little = header.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def placed(header: Dataset, index: int, name: str, element: str, count: int) -> tuple[float, ...] | None:
    """Return where a frame lies; a place at the top level of a file of several frames is that of the first."""
    holder = group(header, index, name)
    return None if holder is header and index else numbers(holder.get(element), count)


def numbers(value: object, count: int) -> tuple[float, ...] | None:
    """Return the numbers of an element that holds `count` of them, else None."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == count:
        return tuple(float(number) for number in value)
    return None


def group(header: Dataset, index: int, name: str) -> Dataset:
    """Return the functional group `name` of the frame, else the shared one, else the top level of the file."""
    frames, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    holders = ([frames[index]] if frames and index < len(frames) else []) + ([shared[0]] if shared else [])
    for holder in holders:
        if holder.get(name):
            return holder[name][0]
    return header


def padding(header: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Return which pixels are padding, bool in the shape of `stored`; None where none are.

    PixelPaddingValue and PixelPaddingRangeLimit are stored values, both ends included (PS3.3 C.7.5.1.1.2).
    """
    value, limit = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return None
    ends = [value, limit if isinstance(limit, int) else value]
    if header.get("PixelRepresentation") == 1:
        ends = [end - 2**16 if end > 32767 else end for end in ends]  # written as unsigned though the pixels are not
    low, high = sorted(ends)
    padded = (stored >= low) & (stored <= high) if low < high else stored == low
    return padded if padded.any() else None


def rescale(path: Path, header: Dataset, index: int) -> tuple[float, float, str] | None:
    """Return slope, intercept and unit of a frame's stored values, or None where the file states none.

    The unit of CT is "HU" unless the file names another.
    """
    holder = group(header, index, "PixelValueTransformationSequence")
    slope, intercept = holder.get("RescaleSlope"), holder.get("RescaleIntercept")
    if slope is None or intercept is None:
        return None
    if slope == 0:
        raise ImageError(path, "its RescaleSlope is 0, which makes all pixels equal; repair the header")
    unit = unit_name(holder.get("RescaleType") or ("HU" if header.get("Modality") == "CT" else ""))
    return float(slope), float(intercept), unit


def unit_name(name: object) -> str:
    """Return the name of a unit; DICOM's "US" means unspecified."""
    return "" if name in (None, "", "US") else str(name)


def short_hash(uid: object) -> str:
    """Return eight characters that stand for a UID where it must not be shown itself; "" for none."""
    return hashlib.sha256(str(uid).encode()).hexdigest()[:8] if uid else ""
