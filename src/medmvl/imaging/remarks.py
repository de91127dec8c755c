"""What people and programs wrote into a picture or volume file beside its values: EXIF, comments, free fields."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import ExifTags, Image, IptcImagePlugin
from pydicom.datadict import dictionary_has_tag, keyword_for_tag, tag_for_keyword
from pydicom.tag import Tag

from medmvl.imaging.address import split_address
from medmvl.imaging.confidentiality import Action, action_of
from medmvl.imaging.identity import is_indirect
from medmvl.imaging.raster import FORMATS
from medmvl.imaging.read import READERS, kind_of

_DAMAGED = (OSError, ValueError, EOFError, SyntaxError, LookupError, TypeError, struct.error, zlib.error)
"""What Pillow and zlib raise for damaged files."""
_LONGEST = 2**16  # bytes of one text, and of a NIfTI file's extensions
_MAX_HEADER = 2**20  # of NRRD and MetaImage
_DICOM_TAG = re.compile(r"(?:DICOM[_:.]?)?\(?([0-9A-Fa-f]{4})[|,_]([0-9A-Fa-f]{4})\)?", re.IGNORECASE)
_PERSON = re.compile(
    r"patient.?(?:s.?)?(?:name|id\b|number|birth|address|phone)|sur.?name|first.?name|last.?name|full.?name|birth.?date|"
    r"date.?of.?birth|\bdob\b|physician|radiologist|\bmrn\b|\bssn\b|accession|author|artist|owner|photographer|by.?line|"
    r"creator\b",
    re.IGNORECASE,
)
_PNG_WORDS = ("Title", "Author", "Description", "Copyright", "Source", "Comment", "Disclaimer", "Warning")
# When and with what a file was written says nothing about who is on it.
_OF_WRITING = re.compile(r"date:\w+|Software|Signature|Thumb::.*|(?:create|modify)-date", re.IGNORECASE)
_BUILT = re.compile(
    r"(?i)\b(?:freesurfer|mricron|mricrogl|dcm2nii\w*|spm\d*|afni|ants)\b[\W_]*(?:\w{3}\s+\d+\s+)?[\d.]+"
)
"""A program with its version or the day it was built."""
_NO_TEXT = {0x8773, 0x927C, 0x0131, 0x0132, 0x014A, 0x8769, 0x8825, 0x02BC, 0x83BB, 0x8649}
"""EXIF and TIFF tags that hold blocks, places of other tags, or what `_OF_WRITING` means."""
_IPTC = {(2, 80): "By-line", (2, 110): "Credit"}
_XMP_WRITING = re.compile(
    r"<(\w+:(?:\w*Date|when|\w*ID|softwareAgent|CreatorTool|format|Thumbnails?|image))\b[^>]*>.*?</\1>", re.DOTALL
)
_META_FIELDS = {
    "NDims", "DimSize", "ElementType", "ElementSpacing", "ElementSize", "ElementByteOrderMSB", "BinaryData",
    "BinaryDataByteOrderMSB", "Offset", "Position", "Origin", "Orientation", "Rotation", "TransformMatrix",
    "CenterOfRotation", "AnatomicalOrientation", "CompressedData", "CompressedDataSize", "CompressionLevel",
    "HeaderSize", "ElementNumberOfChannels", "ElementMin", "ElementMax", "DistanceUnits", "ObjectType", "ObjectSubType",
    "ID", "ParentID", "Color", "Modality", "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset",
}  # fmt: skip
_NIFTI = {
    348: {"descrip": (148, 80), "aux_file": (228, 24), "intent_name": (328, 16), "db_name": (14, 18)},
    540: {"descrip": (240, 80), "aux_file": (320, 24), "intent_name": (508, 16)},
}
"""Length of the header -> field -> (offset, length), as in nifti1.h and nifti2.h."""


@dataclass(frozen=True)
class Remark:
    """One text that a file carries.

    Attributes:
        field: where it stands, in words of the format; never what a file itself calls it, which may be a name.
        text: the text; it may name a patient, and must not be shown.
        personal: its key means a person or what only one person has, whatever the text.
    """

    field: str
    text: str
    personal: bool = False


def remarks_of(path: str | Path) -> list[Remark]:
    """Return the texts in a file that are no part of its values; none for DICOM, whose header has a meaning.

    A file that cannot be read has what could be read of it: whoever reads its values tells what is wrong with it.
    """
    file = split_address(path).file
    if file.is_dir():
        return []
    found: list[Remark] = []
    with suppress(*_DAMAGED):
        found.extend(one for one in _reader(file)(file) if one.personal or one.text.strip())
    return found


def _reader(file: Path) -> Callable[[Path], Iterable[Remark]]:
    kind = kind_of(file)
    for start, reader in ((".nii", _nifti), (".hdr", _nifti), (".img", _nifti), (".n", _nrrd), (".mh", _meta)):
        if kind.startswith(start) and kind not in (".npy", ".npz"):
            return reader
    return _raster if READERS.get(kind, "").endswith(":read_raster") else lambda file: ()


def _remark(container: str, key: str, text: str) -> Remark:
    """Return the remark of a key that a file chose, by what it means."""
    keyword = _keyword(key)
    if keyword:
        tag = Tag(keyword)
        known = action_of(tag, None) is not Action.KEEP and not is_indirect(keyword)
        return Remark(f"{keyword} in {container}", text, known and bool(text.strip()))
    return Remark(container, text, bool(_PERSON.search(key)) and bool(text.strip()))


def _keyword(key: str) -> str:
    """Return the DICOM keyword that a key means: "PatientName", "0010|0010" or "DICOM_0010_0010"; "" for none."""
    found = _DICOM_TAG.fullmatch(key.strip())
    if found:
        tag = Tag(int(found[1], 16), int(found[2], 16))
        return keyword_for_tag(tag) if dictionary_has_tag(tag) else ""
    return key if tag_for_keyword(key) is not None else ""


def _raster(file: Path) -> Iterator[Remark]:
    with file.open("rb") as stream:
        if stream.read(8) == b"\x89PNG\r\n\x1a\n":
            yield from _png(stream)
    with Image.open(file, formats=FORMATS) as image:
        yield from _exif(image.getexif())
        yield from (
            Remark("JPEG comment", _decoded(held)) for name, held in getattr(image, "applist", ()) if name == "COM"
        )
        if image.format == "GIF":
            yield Remark("GIF comment", _decoded(image.info.get("comment", b"")))
        for (record, number), held in (IptcImagePlugin.getiptcinfo(image) or {}).items():
            texts = held if isinstance(held, list) else [held]
            name = _IPTC.get((record, number), "")
            yield from (Remark(f"IPTC {name or 'field'}", _decoded(text), bool(name)) for text in texts if record == 2)
        packet = image.info.get("xmp") or b""
        yield Remark("XMP", _words_of(packet.decode(errors="replace") if isinstance(packet, bytes) else packet))


def _png(stream: Any) -> Iterator[Remark]:
    """Yield the texts of a PNG file, those behind the pixels too."""
    while len(start := stream.read(8)) == 8:
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        if kind not in (b"tEXt", b"zTXt", b"iTXt") or length > 16 * _LONGEST:
            stream.seek(length + 4, 1)
            continue
        key, _, rest = stream.read(length).partition(b"\0")
        stream.seek(4, 1)
        name = key.decode("latin-1")
        if not _OF_WRITING.fullmatch(name):
            text = _png_text(kind, rest)
            word = f"PNG {name}" if name in _PNG_WORDS else "PNG text"
            yield _remark(word, name, _words_of(text) if "<rdf:RDF" in text else text)


def _png_text(kind: bytes, rest: bytes) -> str:
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _inflated(rest[1:]).decode("latin-1")
    text = rest[2:].split(b"\0", 2)[-1]  # behind the language and the key in it
    return (_inflated(text) if rest[:1] == b"\1" else text).decode(errors="replace")


def _inflated(packed: bytes) -> bytes:
    return zlib.decompressobj().decompress(packed, _LONGEST)


def _words_of(packet: str) -> str:
    """Return what stands between the tags of an XMP packet, without when and with what it was written."""
    return re.sub(r"<[^>]*>", " ", _XMP_WRITING.sub(" ", packet))


def _exif(exif: Image.Exif) -> Iterator[Remark]:
    """Yield the texts among EXIF or TIFF tags, and whether a place is told."""
    tags = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    for number, held in tags.items():
        name = ExifTags.TAGS.get(number, "")
        text = _decoded(held, "utf-16-le" if name.startswith("XP") else None) if number not in _NO_TEXT else ""
        if text.strip():
            yield Remark(f"EXIF {name}" if name else "TIFF tag", text, bool(_PERSON.search(name)))
    if ExifTags.GPS.GPSLatitude in exif.get_ifd(ExifTags.IFD.GPSInfo):
        yield Remark("EXIF GPSLatitude", "", True)


def _decoded(held: object, encoding: str | None = None) -> str:
    """Return a text, or bytes that hold one; "" for numbers, and for bytes that are no text."""
    if isinstance(held, str):
        return held[:_LONGEST]
    if isinstance(held, tuple) and encoding:
        held = bytes(held)
    if not isinstance(held, bytes | bytearray):
        return ""
    content = bytes(held[:_LONGEST])
    if content.startswith((b"ASCII\0\0\0", b"UNICODE\0", bytes(8))):  # of an EXIF user comment
        content = content[8:]
    if encoding is None:
        wide = [
            code for code, at in (("utf-16-le", 1), ("utf-16-be", 0)) if content[at::2].count(0) > len(content) // 3
        ]
        encoding = wide[0] if wide else "utf-8"
    text = content.decode(encoding, errors="replace").replace("\0", " ")
    return text if sum(map(str.isprintable, text)) >= 0.8 * len(text) else ""


def _nifti(file: Path) -> Iterator[Remark]:
    header = file.with_name(re.sub(r"(?i)\.img(?=(\.gz)?$)", ".hdr", file.name))
    file = header if header.is_file() else file
    with file.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
    with gzip.open(file) if packed else file.open("rb") as stream:
        start = stream.read(540 + 4 + _LONGEST)
    order: Literal["little", "big"] = "little" if int.from_bytes(start[:4], "little") in _NIFTI else "big"
    length = int.from_bytes(start[:4], order)
    for name, (offset, size) in _NIFTI[length].items():
        text = start[offset : offset + size].split(b"\0")[0].decode("latin-1")
        yield Remark(f"NIfTI {name}", _BUILT.sub(" ", text))
    position = length + 4
    while start[length : length + 1] not in (b"", b"\0") and position + 8 <= len(start):
        size = int.from_bytes(start[position : position + 4], order)
        if size < 16 or size % 16:
            return
        yield Remark("NIfTI extension", _decoded(start[position + 8 : position + size]))
        position += size


def _nrrd(file: Path) -> Iterator[Remark]:
    with file.open("rb") as stream:
        head = re.split(rb"\r?\n\r?\n", stream.read(_MAX_HEADER), maxsplit=1)[0]
    for line in head.decode(errors="replace").splitlines():
        key, free, value = line.partition(":=")
        if line.startswith("#"):
            yield Remark("NRRD comment", line[1:])
        elif free:
            yield _remark("NRRD key", key.strip(), value)
        elif line.lower().startswith("content:"):
            yield Remark("NRRD content", line.partition(":")[2])


def _meta(file: Path) -> Iterator[Remark]:
    with file.open("rb") as stream:
        head = re.split(rb"(?m)^ElementDataFile", stream.read(_MAX_HEADER), maxsplit=1)[0]
    for line in head.decode(errors="replace").splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals and key not in _META_FIELDS:
            yield (
                Remark(f"MetaImage {key}", value)
                if key in ("Comment", "Name")
                else _remark("MetaImage key", key, value)
            )
