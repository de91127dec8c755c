"""Every distinct medium, read once by parallel processes: whether it can be read, what it is, numbers to compare it."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as PIL
from PIL import ImageOps

from medmvl.core.schema import split_fragment
from medmvl.data.audit.identifiers import identifiers
from medmvl.data.audit.samples import USAGE, Facts, Origin
from medmvl.imaging.address import split_address
from medmvl.imaging.identity import Identity, identity_of
from medmvl.imaging.intensity import apply_window, percentile_window, to_display
from medmvl.imaging.picture import Picture
from medmvl.imaging.read import read_image
from medmvl.imaging.remarks import remarks_of
from medmvl.imaging.volume import Volume
from medmvl.imaging.workers import work_all

SIDE = 32
"""Pixels along each side of the small picture that two media are compared by."""

GOOD, MISSING, CORRUPT = 1, 2, 3
_FLAT = 2.0  # standard deviation, in grey values of 255, below which there is nothing to compare


@dataclass(frozen=True)
class Usage:
    """Which media the splits show.

    Attributes:
        entries: of `samples.USAGE`, one per medium and split; "media" is the medium's number, from 0.
        hashes, ranks: sorted hashes of the media's addresses, and the number of each.
    """

    entries: np.ndarray
    hashes: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of(cls, facts: Sequence[Facts]) -> Usage:
        """Number the distinct media of all splits, in the order in which they are met."""
        every = np.concatenate([np.zeros(0, USAGE), *(part for one in facts for part in one.usage)])
        every = every[np.lexsort((every["position"], every["row"], every["origin"]))]
        hashes, first, codes = np.unique(every["media"], return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.uint64)
        rank[np.argsort(first)] = np.arange(len(first))
        every["media"] = rank[codes.ravel()]
        kept = every[np.sort(np.unique(every[["media", "origin"]], return_index=True)[1])]
        return cls(kept, hashes, rank.astype(np.int64))

    def __len__(self) -> int:
        """Return the number of distinct media."""
        return int(self.entries["media"].max()) + 1 if len(self.entries) else 0

    def numbers(self, hashes: np.ndarray) -> np.ndarray:
        """Return the numbers of media by the hashes of their addresses; -1 for one that no readable row shows first."""
        if not len(self.hashes):
            return np.full(len(hashes), -1)
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[places] == hashes, self.ranks[places], -1)

    def of_origin(self, number: int) -> np.ndarray:
        """Return the entries of one split."""
        return self.entries[self.entries["origin"] == number]

    def first(self) -> np.ndarray:
        """Return the first entry of every medium, by number."""
        return self.entries[np.unique(self.entries["media"], return_index=True)[1]]


@dataclass
class Media:
    """What is known of the distinct media, by number.

    Attributes:
        usage: who shows them.
        state: uint8, GOOD, MISSING or CORRUPT.
        pixels, file: uint64 hashes of the decoded values, and of the path without fragment.
        phash: uint64 perceptual hash of the picture, or of the middle slice; 0 where there is nothing to compare.
        mirrored: the same with left and right exchanged.
        small: uint8 [n, SIDE * SIDE], that picture made small; on disk.
        size: uint32 [n, 3], depth (0 for pictures), height, width.
        frame: uint32 [n, 3], the size before a volume was turned: boxes are given in it.
        spacing: float32 [n, 3] in mm; NaN where unknown.
        wrong: number -> what is wrong with it.
        blank: numbers of media in which all values are equal.
        notes: number -> which fields beside the values could identify a patient, and how.
        fields: what `notes` says -> media that hold it.
        identity: number -> what its headers hold; only of those that hold something.
        keywords: attribute -> media that hold it.
        burned_in: numbers of media whose pixels are known to show who the patient is.
        counts: media by what was found: "missing", "corrupt", "direct", "indirect", "burned_in", "blank", "notes".
    """

    usage: Usage
    state: np.ndarray
    pixels: np.ndarray
    file: np.ndarray
    phash: np.ndarray
    mirrored: np.ndarray
    small: np.ndarray
    size: np.ndarray
    frame: np.ndarray
    spacing: np.ndarray
    wrong: dict[int, str] = field(default_factory=dict)
    blank: list[int] = field(default_factory=list)
    notes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    fields: Counter[str] = field(default_factory=Counter)
    identity: dict[int, Identity] = field(default_factory=dict)
    keywords: Counter[str] = field(default_factory=Counter)
    burned_in: set[int] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Looked:
    number: int
    state: int
    path: str
    wrong: str = ""
    pixels: int = 0
    phash: int = 0
    mirrored: int = 0
    small: bytes = b""
    size: tuple[int, int, int] = (0, 0, 0)
    frame: tuple[int, int, int] = (0, 0, 0)
    blank: bool = False
    notes: tuple[str, ...] = ()
    spacing: tuple[float, ...] = (np.nan,) * 3
    identity: Identity = field(default_factory=Identity)


def look(
    origins: Sequence[Origin],
    usage: Usage,
    scratch: BinaryIO,
    most: int,
    workers: int | None,
    advance: Callable[[int], None] = lambda count: None,
) -> Media:
    """Read every distinct medium once.

    Args:
        origins, usage: who shows what.
        scratch: an open temporary file for the small pictures, a kilobyte each.
        most: errors and headers that are kept word for word, of each kind.
        workers: processes, each with one medium in memory; default: one per usable core.
        advance: is told how many media are done.

    Returns:
        What is known of them: 90 bytes in memory each.
    """
    n = len(usage)
    scratch.truncate(max(1, n) * SIDE * SIDE)
    small = np.memmap(scratch, np.uint8, "r+", shape=(max(1, n), SIDE * SIDE))
    hashes = [np.zeros(n, np.uint64) for _ in range(4)]
    sizes = [np.zeros((n, 3), np.uint32) for _ in range(2)]
    spacing = np.full((n, 3), np.nan, np.float32)
    media = Media(usage, np.zeros(n, np.uint8), *hashes, small, *sizes, spacing)
    for one in work_all(_begin, _jobs(origins, usage), _died, workers):
        _note(media, one, most)
        advance(1)
    return media


def _jobs(origins: Sequence[Origin], usage: Usage) -> Iterator[tuple[int, str]]:
    for number, entry in enumerate(usage.first()):
        yield number, origins[entry["origin"]].store[int(entry["row"])].media_key[entry["position"]]


def _died(job: tuple[int, str], how: str) -> _Looked:
    return _Looked(job[0], CORRUPT, job[1], wrong=how)


def _note(media: Media, one: _Looked, most: int) -> None:
    number = one.number
    media.state[number], media.pixels[number], media.phash[number] = one.state, one.pixels, one.phash
    media.file[number] = _digest(split_fragment(one.path)[0].encode())
    media.mirrored[number] = one.mirrored
    media.size[number], media.frame[number], media.spacing[number] = one.size, one.frame, one.spacing
    if one.small:
        media.small[number] = np.frombuffer(one.small, np.uint8)
    kind = {MISSING: "missing", CORRUPT: "corrupt"}.get(one.state, "")
    media.counts[kind] += 1
    if kind and media.counts[kind] <= most:
        media.wrong[number] = one.wrong
    for name, values in (("blank", one.blank), ("notes", one.notes)):
        media.counts[name] += bool(values)
    if one.blank and media.counts["blank"] <= most:
        media.blank.append(number)
    if one.notes and media.counts["notes"] <= most:
        media.notes[number] = one.notes
    media.fields.update(one.notes)
    held = one.identity
    media.keywords.update((*held.direct, *held.indirect))
    for name, values in (("direct", held.direct), ("indirect", held.indirect), ("burned_in", held.burned_in)):
        media.counts[name] += bool(values)
        if values and media.counts[name] <= most:
            media.identity[number] = held
    if held.burned_in:
        media.burned_in.add(number)


def _begin() -> Callable[[tuple[int, str]], _Looked]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # its warnings name files
    warnings.simplefilter("ignore")
    return _look


def _look(job: tuple[int, str]) -> _Looked:
    number, path = job
    known: dict[str, Any] = {}
    try:
        if not split_address(path).file.exists():
            return _Looked(number, MISSING, path, wrong="no such file")
        known["notes"] = notes_of(path)
        known["identity"] = identity_of(path)
        return _Looked(number, GOOD, path, **known, **_measured(read_image(path)))
    except (ValueError, OSError, MemoryError) as error:
        told = str(error).removeprefix(f"{path}: ").removeprefix(f"{split_fragment(path)[0]}: ")
        return _Looked(number, CORRUPT, path, wrong=told or type(error).__name__, **known)


def _measured(read: Picture | Volume) -> dict[str, Any]:
    """Return what is kept of a picture or volume itself."""
    shown = picture_of(read)
    grey = PIL.fromarray(shown).convert("L")
    small = grey.resize((SIDE, SIDE), PIL.Resampling.BOX)
    seen = grey.resize((SIDE, SIDE), PIL.Resampling.LANCZOS)
    flat = np.asarray(small).std() < _FLAT
    return {
        "pixels": _of_values(read.array),
        "phash": 0 if flat else _perceptual(seen),
        "mirrored": 0 if flat else _perceptual(ImageOps.mirror(seen)),
        "small": small.tobytes(),
        "size": read.size if isinstance(read, Volume) else (0, *read.size),
        "frame": read.original.size if isinstance(read, Volume) else (0, *read.size),
        "spacing": _spacing(read),
        "blank": bool((read.array == read.array.flat[0]).all()),
    }


def notes_of(path: str) -> tuple[str, ...]:
    """Return which texts in a file beside its values could identify a patient, as "PNG text (name, date)"."""
    found: dict[str, dict[str, None]] = {}
    for remark in remarks_of(path):
        kinds = (["person"] if remark.personal else []) + [one.kind for one in identifiers(remark.text)]
        if kinds:
            found.setdefault(remark.field, {}).update(dict.fromkeys(kinds))
    return tuple(f"{name} ({', '.join(kinds)})" for name, kinds in found.items())


def picture_of(read: Picture | Volume) -> np.ndarray:
    """Return uint8 [H, W] or [H, W, 3]: the picture, or a volume's middle slice between its outermost percents."""
    if isinstance(read, Picture):
        return np.ascontiguousarray(to_display(read))
    middle = read.array[read.array.shape[0] // 2]
    return np.ascontiguousarray(apply_window(middle, percentile_window(middle, 1, 99)))


def _perceptual(seen: PIL.Image) -> int:
    """Return ImageHash's 64 bits of a small grey picture: which low frequencies are above their median; never 0."""
    import imagehash

    bits = imagehash.phash(seen).hash
    return int.from_bytes(np.packbits(bits).tobytes()) or 1


def _of_values(array: np.ndarray) -> int:
    digest = hashlib.blake2b(f"{array.shape} {array.dtype.str}".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(array))
    return int.from_bytes(digest.digest()) or 1


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) or 1


def _spacing(read: Picture | Volume) -> tuple[float, ...]:
    with suppress(TypeError):
        values = tuple(float(value) for value in read.spacing or ())
        return (np.nan,) * (3 - len(values)) + values
    return (np.nan,) * 3
