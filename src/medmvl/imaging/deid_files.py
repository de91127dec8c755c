"""De-identifies DICOM files, one or a tree of them, and tells what became of each without naming anyone."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydicom import dcmread, dcmwrite
from pydicom.config import disable_value_validation
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from medmvl.core.atomic import DiskFullError, atomic_file
from medmvl.imaging.deid import ElementError, Treated, burned_in, deidentify, doubt, patient_of
from medmvl.imaging.dicom_file import has_picture, syntax_of
from medmvl.imaging.jpeg_notes import notes_in
from medmvl.imaging.pseudonym import pseudonym
from medmvl.imaging.workers import work_all

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_UNDEFINED = 0xFFFFFFFF
_INFLATED_LIMIT = 4 * 2**30  # bytes that a deflated file may unpack to
_DEFLATED = DeflatedExplicitVRLittleEndian.encode()
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # of old files without a preamble: group 2 or 8


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes:
        index: its place among the sorted files, from 0.
        status: "written", "there" (a former run wrote it, or an identical copy), "refused" (its pixels show who it is),
            "broken", or "left_out" (no DICOM, a directory of a disc, or a file without a picture).
        reason: why, where it was not written.
        written: path below the output folder.
        instance: its new SOPInstanceUID.
        treated: what was done to which attributes.
        doubt: why its pixels should be looked at.
        noted: whether its compressed pixels carry a comment or a segment of an application, which stay as they are.
    """

    index: int
    status: str
    reason: str = ""
    written: str = ""
    instance: str = ""
    treated: Treated = field(default_factory=dict)
    doubt: str = ""
    noted: bool = False


class _LeftOutError(ValueError):
    pass


class _RefusedError(ValueError):
    pass


class _BrokenError(ValueError):
    pass


_STATUS = {_LeftOutError: "left_out", _RefusedError: "refused", _BrokenError: "broken", ElementError: "broken"}


def files_of(source: str | Path) -> list[Path]:
    """Return the file, or all files of a tree, sorted; links to folders are not followed.

    Raises:
        ValueError: nothing is there, or a folder cannot be listed.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source}: does not exist; name a DICOM file or a folder of them")
    if source.is_file():
        return [source]
    found = (Path(folder) / name for folder, _, names in os.walk(source, onerror=_unlisted) for name in names)
    files = sorted(path for path in found if path.is_file() or path.is_symlink())
    if not files:
        raise ValueError(f"{source}: holds no files")
    return files


def _unlisted(error: OSError) -> None:
    raise ValueError(f"{error.filename}: cannot be listed ({error.strerror}); nothing was written") from error


def deidentify_files(
    files: Sequence[Path], out: str | Path, key: bytes, keep_burned_in: bool = False, workers: int | None = None
) -> Iterator[Outcome]:
    """De-identify files into a folder, several at a time; yields each as it is done, in any order.

    A file becomes out/PATIENT/STUDY/SERIES/FILE.dcm, all four pseudonyms by the key; FILE stands for its whole content,
    so files never overwrite each other, and a call that was stopped is made again with the same key. Only files with
    pixels are written: structured reports, documents, presentation states, plans and waveforms hold free text. Pixels
    stay byte for byte, compressed ones too.

    Args:
        files: what `files_of` found.
        out: the folder; what is there stays.
        key: secret of `pseudonym`.
        keep_burned_in: write files whose pixels are known to show who the patient is; they then say so.
        workers: processes, each with one file in memory; default: one per usable core.

    Raises:
        DiskFullError: a file cannot be written.
    """
    begin = partial(_begin, Path(out), key, keep_burned_in)
    return work_all(begin, enumerate(files), lambda job, how: Outcome(job[0], "broken", how), workers)


def _begin(out: Path, key: bytes, keep_burned_in: bool) -> Callable[[tuple[int, Path]], Outcome]:
    warnings.simplefilter("ignore")  # pydicom's repeat what an element holds, as its log does
    logging.getLogger("pydicom").disabled = True
    return partial(_outcome, out, key, keep_burned_in)


def _outcome(out: Path, key: bytes, keep_burned_in: bool, job: tuple[int, Path]) -> Outcome:
    index, path = job
    try:
        with disable_value_validation():
            return _deidentify_file(index, path, out, key, keep_burned_in)
    except DiskFullError:
        raise
    except tuple(_STATUS) as error:
        return Outcome(index, _STATUS[type(error)], str(error))
    except OSError as error:
        return Outcome(index, "broken", f"could not be read ({os.strerror(error.errno or 0)})")
    except Exception as error:  # pydicom raises many kinds; their messages repeat what elements hold
        return Outcome(index, "broken", f"is damaged or malformed ({type(error).__name__})")


def _deidentify_file(index: int, path: Path, out: Path, key: bytes, keep_burned_in: bool) -> Outcome:
    dataset = _read(path)
    _check_picture(dataset)
    shown = burned_in(dataset)
    if shown and not keep_burned_in:
        raise _RefusedError(f"{shown}; look at it, and blacken the text or use --keep-burned-in")
    suspect = shown or doubt(dataset) or ""
    places = patient_of(dataset), dataset.get("StudyInstanceUID"), dataset.get("SeriesInstanceUID"), _content(path)
    target = Path(*(pseudonym(key, str(place or "")) for place in places)).with_suffix(".dcm")
    noted = _has_notes(dataset)
    treated = deidentify(dataset, key, identity_removed=not shown)
    status = "there" if (out / target).exists() else "written"
    if status == "written":
        with atomic_file(out / target, "wb") as file:
            _write(file, dataset)
    return Outcome(index, status, "", target.as_posix(), str(dataset.SOPInstanceUID), treated, suspect, noted)


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> Dataset:
    with path.open("rb") as file:
        start, rest = file.read(132), file.read(1024)
    if start[128:] != b"DICM" and start[:2] not in _STARTS:
        raise _LeftOutError("is no DICOM file")
    if _DEFLATED in start + rest:
        _check_inflated(path)
    dataset = dcmread(path, force=True)
    if "DirectoryRecordSequence" in dataset:
        raise _LeftOutError("is the directory of a disc (DICOMDIR)")
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax_of(dataset)
    return dataset


def _check_inflated(path: Path) -> None:
    """Refuse a deflated file that unpacks to more than anyone could mean."""
    begin = 144 + int(read_file_meta_info(path).FileMetaInformationGroupLength)
    unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(begin)
        while not unpacker.eof and (chunk := unpacker.unconsumed_tail or file.read(2**16)):
            size += len(unpacker.decompress(chunk, 2**24))
            if size > _INFLATED_LIMIT:
                raise _BrokenError(f"unpacks to more than {_INFLATED_LIMIT / 2**30:.0f} GiB")


def _check_picture(dataset: Dataset) -> None:
    """Refuse a file without pixels, cut off or not, and one without the UIDs that every DICOM file has."""
    if not len(dataset):  # pydicom gives up a file that ends within compressed pixels
        raise _BrokenError("is cut off")
    pixels = [dataset.get_item(keyword) for keyword in _PIXELS if keyword in dataset]
    stated = UID(str(dataset.get("SOPClassUID") or ""))
    kind = "of unknown kind" if stated.name == stated else stated.name  # never what a damaged element holds
    if not pixels and not has_picture(dataset) and "Image" not in kind:
        raise _LeftOutError(f"has no picture ({kind}); its text may name anyone")
    raws = (dataset.get_item(tag) for tag in list(dataset.keys()))
    if not pixels or not has_picture(dataset) or any(_is_cut(raw) for raw in raws if isinstance(raw, RawDataElement)):
        raise _BrokenError("is cut off")
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not dataset.get(keyword):
            raise _BrokenError(f"lacks {keyword}")
    _check_pixels(dataset, pixels[0].value)


def _is_cut(raw: RawDataElement) -> bool:
    return raw.length != _UNDEFINED and len(raw.value or b"") < raw.length


def _check_pixels(dataset: Dataset, pixels: bytes) -> None:
    if dataset.file_meta.TransferSyntaxUID.is_compressed and not _is_deflated(dataset):
        return _check_items(pixels)
    values = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 1)
    needed = (values * int(dataset.get("NumberOfFrames") or 1) * int(dataset.BitsAllocated) + 7) // 8
    if dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
        needed = needed * 2 // 3
    if len(pixels) < needed:
        raise _BrokenError(f"is cut off: {len(pixels):,} of {needed:,} bytes of its pixels are there")


def _is_deflated(dataset: Dataset) -> bool:
    return dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian


def _check_items(pixels: bytes) -> None:
    """Refuse compressed pixels whose items do not follow each other to the end."""
    position = max((end for _, end in _items(pixels)), default=0)
    if position != len(pixels) and pixels[position : position + 4] != _DELIMITER:
        raise _BrokenError("is cut off: its compressed pixels are not whole")


def _items(pixels: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of the content of every item of compressed pixels."""
    position = 0
    while position + 8 <= len(pixels) and pixels[position : position + 4] == _ITEM:
        start = position + 8
        position = start + int.from_bytes(pixels[position + 4 : start], "little")
        yield start, position


def _has_notes(dataset: Dataset) -> bool:
    """Whether a compressed picture carries words of its own, inside the pixels that stay byte for byte."""
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return False
    pixels = dataset.get_item("PixelData").value
    return any(note for start, end in _items(pixels) for note in notes_in(memoryview(pixels)[start:end]))


def _write(file: object, dataset: Dataset) -> None:
    implicit, little = dataset.original_encoding
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_private:
        dcmwrite(file, dataset, enforce_file_format=True, implicit_vr=implicit, little_endian=little)
    else:
        dcmwrite(file, dataset, enforce_file_format=True)
