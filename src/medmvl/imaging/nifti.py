"""Reads NIfTI-1 and NIfTI-2 from the raw header up, because libraries invent or straighten what a header lacks.

The values are decoded here too: one copy in memory, in the stored type, at the speed of zlib. A library would turn
every volume with a rescaling into floats first.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from medmvl.imaging.address import Address
from medmvl.imaging.header import DEFLATE_LIMIT, ORIENTATION_HINT, axes_of, check_length, stated_direction, warn_once
from medmvl.imaging.hounsfield import Rescale, choose
from medmvl.imaging.orient import from_file, orientation_of
from medmvl.imaging.picture import ImageError
from medmvl.imaging.values import to_values
from medmvl.imaging.volume import Volume, check_voxels

# Offsets of nifti1.h and nifti2.h.
_V1 = {
    "dim": ("i2", 8, 40), "datatype": ("i2", 1, 70), "pixdim": ("f4", 8, 76), "vox_offset": ("f4", 1, 108),
    "scl_slope": ("f4", 1, 112), "scl_inter": ("f4", 1, 116), "xyzt_units": ("u1", 1, 123),
    "qform_code": ("i2", 1, 252), "sform_code": ("i2", 1, 254), "quatern": ("f4", 3, 256), "qoffset": ("f4", 3, 268),
    "srow": ("f4", 12, 280),
}  # fmt: skip
_V2 = {
    "dim": ("i8", 8, 16), "datatype": ("i2", 1, 12), "pixdim": ("f8", 8, 104), "vox_offset": ("i8", 1, 168),
    "scl_slope": ("f8", 1, 176), "scl_inter": ("f8", 1, 184), "xyzt_units": ("i4", 1, 500),
    "qform_code": ("i4", 1, 344), "sform_code": ("i4", 1, 348), "quatern": ("f8", 3, 352), "qoffset": ("f8", 3, 376),
    "srow": ("f8", 12, 400),
}  # fmt: skip
_SIZES = {348: _V1, 540: _V2}
_MAGIC = {348: (344, (b"n+1\0", b"ni1\0")), 540: (4, (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n"))}

_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_OTHER_TYPES = {
    1: "single bits", 32: "complex numbers", 128: "RGB colour", 1536: "128-bit floats", 1792: "complex numbers",
    2048: "complex numbers", 2304: "RGBA colour",
}  # fmt: skip
_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metre, millimetre, micrometre -> mm
_GZIP = b"\x1f\x8b"
_PIECE = 2**16  # of a packed file: what it becomes stays within the processor's cache
_BEYOND = 2**20  # bytes behind the voxels that are still read


@dataclass(frozen=True)
class _Header:
    """What is needed of a header.

    Attributes:
        size: (x, y, z); volumes: how many of them, one after the other.
        stored: type of a voxel, with its byte order; offset: of the first voxel in `data`, the file that holds it.
        rescale: of the stored values.
        spacing (z, y, x), origin, direction: see `Frame`; direction and origin are None where the header is silent.
    """

    size: tuple[int, int, int]
    volumes: int
    stored: np.dtype
    offset: int
    data: Path
    rescale: Rescale
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float] | None
    direction: tuple[float, ...] | None


def read_nifti(file: Path, address: Address) -> Volume:
    """Read a volume from .nii, .nii.gz or a pair .hdr and .img, either byte order.

    The sform is followed where its code is set, else the qform. Values are rescaled as the header or `address.hu` says.

    Raises:
        ImageError: no NIfTI, cut off, damaged, too large, several volumes and none chosen, colour or complex numbers;
            voxels without extent, neither sform nor qform, a sheared or senseless matrix, sform and qform that
            contradict each other on left and right; values as in `to_values`.
    """
    try:
        header = _read_header(file)
        if header.direction is None:
            header = _stated(file, header, address)
        elif address.orientation is not None:
            raise ImageError(file, "its header says where its axes point; leave out orientation, or repair the header")
        index = _choose(file, header.volumes, address.frame)
        rescale = choose(file, header.rescale, address.hu)
        values = _decode(file, header, index).reshape(header.size[::-1])
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(file, f"is damaged ({error}); get the file again") from error
    unit = "HU" if address.hu is not None else address.unit or ""
    values = to_values(values, rescale, file, unit)
    return from_file(values, header.spacing, header.origin, header.direction, address.given, unit=unit)


def _stated(file: Path, header: _Header, address: Address) -> _Header:
    if address.orientation is None:
        raise ImageError(
            file,
            "its header does not say where its axes point (sform_code and qform_code are both 0); "
            + ORIENTATION_HINT.format(name=address.given),
        )
    return replace(header, direction=stated_direction(file, address.orientation))


def _choose(file: Path, volumes: int, frame: int | None) -> int:
    if frame is None and volumes > 1:
        raise ImageError(
            file,
            f"is 4D: it holds {volumes} volumes (time points or channels) and none was chosen; ask for one by the path "
            f"'{file}#frame=0' (0 to {volumes - 1})",
        )
    if frame is not None and frame >= volumes:
        raise ImageError(file, f"has no volume {frame}; it holds {volumes}, counted from 0")
    return frame or 0


def _read_header(file: Path) -> _Header:
    """Read and check the header, before anything is allocated.

    Raises:
        ImageError: see `read_nifti`.
    """
    told = file.with_name(_swap(file.name, "img", "hdr"))
    if told != file and not told.is_file():
        raise ImageError(file, f"has no header beside it: {told.name} is missing")
    fields, single = _fields(file, _start(told, 540))
    size, volumes = _extent(file, fields["dim"])
    check_voxels(file, size[::-1])
    code = int(fields["datatype"][0])
    if code not in _TYPES:
        what = _OTHER_TYPES.get(code, "an unknown type")
        raise ImageError(file, f"holds {what} (datatype {code}); a volume holds whole or real numbers")
    stored = np.dtype(_TYPES[code]).newbyteorder(fields["dim"].dtype.byteorder)
    offset = float(fields["vox_offset"][0])
    if not offset.is_integer() or offset < 0:
        raise ImageError(file, f"its header says that voxels start at byte {offset:g}; repair vox_offset")
    smallest = (352 if fields["srow"].itemsize == 4 else 544) if single else 0
    data = file if single else file.with_name(_swap(file.name, "hdr", "img"))
    if not data.is_file():
        raise ImageError(file, f"its voxels should be in {data.name} beside it, which is missing")
    spacing, origin, direction = _geometry(file, fields)
    return _Header(
        size, volumes, stored, max(int(offset), smallest), data, _rescale(file, fields), spacing, origin, direction
    )


def _fields(file: Path, raw: bytes) -> tuple[dict[str, np.ndarray], bool]:
    """Return the fields in the file's byte order, and whether the voxels are in the same file."""
    for order in "<>":
        length = int.from_bytes(raw[:4], "little" if order == "<" else "big")
        if length not in _SIZES:
            continue
        if len(raw) < length:
            break
        start, marks = _MAGIC[length]
        mark = raw[start : start + len(marks[0])]
        if mark not in marks:
            raise ImageError(
                file, "is Analyze 7.5 or damaged: its header lacks the NIfTI mark, and Analyze does not say where left "
                "is; convert it to NIfTI with a tool that knows"
            )  # fmt: skip
        names = _SIZES[length].items()
        fields = {name: np.frombuffer(raw, f"{order}{kind}", n, at) for name, (kind, n, at) in names}
        return fields, mark == marks[0]
    if len(raw) < 348:
        raise ImageError(file, f"is cut off: a NIfTI header has 348 bytes, {len(raw)} are there; get the file again")
    raise ImageError(file, "is no NIfTI file: it does not start with the length of a NIfTI header")


def _extent(file: Path, dim: np.ndarray) -> tuple[tuple[int, int, int], int]:
    """Return (x, y, z) and the number of volumes."""
    axes = int(dim[0])
    if not 1 <= axes <= 7:
        raise ImageError(file, f"its header says that it has {axes} axes; NIfTI has 1 to 7, repair dim")
    sizes = [int(length) for length in dim[1 : axes + 1]]
    text = " x ".join(map(str, sizes))
    if min(sizes) < 1:
        raise ImageError(file, f"the volume has no voxels: its header says {text}; repair the header")
    if axes < 3:
        raise ImageError(file, f"holds {text} values on {axes} axes; a volume has 3")
    if prod(sizes[4:]) > 1:
        raise ImageError(file, f"has {axes} axes ({text}), as fields of vectors do; a volume has 3, or 4 with time")
    return (sizes[0], sizes[1], sizes[2]), sizes[3] if axes > 3 else 1


def _rescale(file: Path, fields: dict[str, np.ndarray]) -> Rescale:
    slope, intercept = float(fields["scl_slope"][0]), float(fields["scl_inter"][0])
    if slope == 0 or not np.isfinite(slope):  # the standard's "not scaled"
        return Rescale()
    if not np.isfinite(intercept):
        raise ImageError(file, f"its scl_slope is {slope:g}, but its scl_inter is {intercept}; repair the header")
    return Rescale(slope, intercept)


def _geometry(
    file: Path, fields: dict[str, np.ndarray]
) -> tuple[tuple[float, float, float], tuple[float, float, float] | None, tuple[float, ...] | None]:
    """Return spacing (z, y, x), origin and direction; the last two are None where both codes are 0."""
    unit = int(fields["xyzt_units"][0]) & 7
    scale = _UNITS.get(unit)
    if scale is None:
        raise ImageError(file, f"its header states an unknown unit of length (code {unit}); repair xyzt_units")
    steps = fields["pixdim"][1:4].astype(float) * scale
    for axis, step in zip("xyz", steps, strict=True):
        if not np.isfinite(step) or step <= 0:
            raise ImageError(
                file, f"its header states a voxel size of {step:g} along {axis} (pixdim); repair the header"
            )
    found = []
    if fields["sform_code"][0] > 0:
        rows = fields["srow"].astype(float).reshape(3, 4) * scale
        found.append(("sform", _to_lps(rows)))
    if fields["qform_code"][0] > 0:
        found.append(("qform", _to_lps(_from_quaternion(file, fields, steps, scale))))
    if not found:
        return (steps[2], steps[1], steps[0]), None, None
    name, matrix = found[0]
    spacing, direction = axes_of(file, matrix[:, :3], name)
    if not np.isfinite(matrix[:, 3]).all():
        raise ImageError(file, f"its {name} holds NaN or infinite numbers; repair the header")
    if not np.allclose(spacing[::-1], steps, rtol=0.01):
        doubt = f"voxels measure {_text(steps)} mm by its pixdim, {_text(spacing[::-1])} mm by its sform"
        warn_once(file, "spacing", f"{doubt}; the sform is followed")
    if len(found) > 1:
        _compare(file, direction, axes_of(file, found[1][1][:, :3], "qform")[1])
    return spacing, tuple(matrix[:, 3].tolist()), direction


def _from_quaternion(file: Path, fields: dict[str, np.ndarray], steps: np.ndarray, scale: float) -> np.ndarray:
    """Return the qform as [3, 4], as nifti1.h defines it (method 2)."""
    b, c, d = fields["quatern"].astype(float)
    rest = 1 - (b * b + c * c + d * d)
    if not rest > -1e-3:  # catches NaN too
        raise ImageError(file, f"its qform is no rotation (quaternion {b:g}, {c:g}, {d:g}); repair the header")
    a = np.sqrt(rest) if rest >= 1e-7 else 0.0  # the rest is rounding, as nifti1_io.c has it
    a, b, c, d = np.array([a, b, c, d]) / np.linalg.norm([a, b, c, d])
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    signs = np.array([1, 1, -1 if fields["pixdim"][0] < 0 else 1])
    return np.column_stack([turn * steps * signs, fields["qoffset"].astype(float) * scale])


def _to_lps(matrix: np.ndarray) -> np.ndarray:
    """NIfTI's x grows to the patient's right and y to the front; ours to the left and to the back."""
    return matrix * np.array([[-1.0], [-1.0], [1.0]])


def _compare(file: Path, sform: tuple[float, ...], qform: tuple[float, ...]) -> None:
    """Refuse a header whose two matrices put the patient's left on different sides; the sform wins otherwise."""
    first, second = (np.reshape(direction, (3, 3)) for direction in (sform, qform))
    # The left-right coordinate as a direction among the axes of the array: 60 degrees apart is another axis or side.
    if float(first[:, 0] @ second[:, 0]) < 0.5:
        raise ImageError(
            file,
            f"its sform ({orientation_of(sform)}) and its qform ({orientation_of(qform)}) put the patient's left on "
            "different sides; left and right are not guessed: set the code of the wrong one to 0",
        )
    if orientation_of(sform) != orientation_of(qform):
        doubt = f"sform ({orientation_of(sform)}) and qform ({orientation_of(qform)}) contradict each other"
        warn_once(file, "orientation", f"{doubt}; the sform is followed")


def _decode(file: Path, header: _Header, index: int) -> np.ndarray:
    """Return the stored values of one volume, flat, in memory of its own."""
    count = prod(header.size)
    needed = count * header.stored.itemsize
    start = header.offset + index * needed
    there = header.data.stat().st_size
    with header.data.open("rb") as stream:
        packed = stream.read(2) == _GZIP
        stream.seek(0)
        check_length(file, there * (DEFLATE_LIMIT if packed else 1), start + needed, header.data)
        if not packed:
            return np.fromfile(stream, header.stored, count, offset=start)
        values = np.empty(count, header.stored)
        filled = _inflate(stream, start, memoryview(values.view(np.uint8)))
        check_length(file, start + filled, start + needed, header.data)
        return values


def _inflate(stream: IO[bytes], start: int, target: memoryview) -> int:
    """Fill `target` with what follows byte `start` of a gzip stream; return how many bytes of it are filled.

    Raises:
        zlib.error, EOFError: see `_unpacked`.
    """
    done, beyond = -start, 0
    for piece in _unpacked(stream):
        if done < 0:
            skipped = min(-done, len(piece))
            piece, done = piece[skipped:], done + skipped
        part = piece[: len(target) - done]
        target[done : done + len(part)] = part
        done += len(part)
        # Going on to the end lets zlib compare the sum of the whole; what lies far behind is nobody's.
        beyond += len(piece) - len(part)
        if beyond > _BEYOND:
            break
    return done


def _unpacked(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of a gzip file in pieces; several members are one content, padding behind them is ignored.

    Raises:
        zlib.error: the stream is damaged; EOFError: it ends before its end mark.
    """
    inflater = zlib.decompressobj(wbits=31)
    while packed := stream.read(_PIECE):
        while packed:
            if inflater.eof:
                if packed[0] == 0:
                    return
                inflater = zlib.decompressobj(wbits=31)
            yield inflater.decompress(packed)
            packed = inflater.unused_data
    if not inflater.eof:
        raise EOFError("cut off: its gzip stream has no end")


def _start(path: Path, length: int) -> bytes:
    """Return the first bytes of a file, unpacked."""
    with path.open("rb") as stream:
        packed = stream.read(2) == _GZIP
        stream.seek(0)
        if not packed:
            return stream.read(length)
        start = b""
        for piece in _unpacked(stream):
            start += piece
            if len(start) >= length:
                break
        return start[:length]


def _swap(name: str, old: str, new: str) -> str:
    """Return the name of the other file of a pair: scan.img.gz -> scan.hdr.gz."""
    return re.sub(rf"(?i)(?<=\.){old}(?=(\.gz)?$)", lambda found: new if found[0].islower() else new.upper(), name)


def _text(lengths: Sequence[float]) -> str:
    return " x ".join(f"{length:g}" for length in lengths)
