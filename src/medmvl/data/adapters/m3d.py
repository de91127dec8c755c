"""M3D-Data: captions, questions and boxes of CT volumes (M3D-Cap, M3D-VQA, M3D-Seg, M3D-RefSeg)."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.lib import format as npy
from pydantic import Field

from medmvl.core.config import Strict
from medmvl.core.schema import Box, Sample, SampleError, Volume
from medmvl.data.adapters.base import Adapter, Finders
from medmvl.data.adapters.embedded import yes_no
from medmvl.data.adapters.regions import regions
from medmvl.data.npz import npz_array, npz_file
from medmvl.data.questions import draw
from medmvl.data.rows import BadRow, Row, TableError, csv_rows, json_items, json_rows
from medmvl.imaging.volume import check_voxels

Coords = tuple[int, int, int, int, int, int]

_OFFICIAL = {"train": "train", "val": "validation", "test": "test"}
_CAP = ("M3D_Cap_npy", "M3D_Cap", "M3D-Cap")  # names of one folder
_REFSEG = ("M3D_RefSeg_npy", "M3D_RefSeg", "M3D-RefSeg")
_CHOICE_OR_OPEN, _REGIONS = ("vqa_closed", "vqa_open"), ("rec", "reg")  # tasks of one part
_TYPES = {"1": "plane", "2": "phase", "3": "organ", "4": "abnormality", "5": "location"}
_SPARSE = re.compile(r"mask_\((\d+(?:, ?\d+){3})\)\.npz")  # mask_(C, X, Y, Z).npz
_MASK = re.compile(r"mask_(\d+)\.npy")
_LONGEST_TEXT = 2**20  # bytes; the longest has some thousands
_FEWEST_LETTERS = 5  # of a section that says something, as in M3D's own preparation


class M3dOptions(Strict):
    """Which of the test sets."""

    caption_test: str = Field(
        default="test",
        description="list of M3D_Cap.json that is the test split: test, test1k, test500, test100, ...; or hard_test, "
        "that of M3D_Cap_eh.json",
    )
    vqa_test: Literal["test", "test5k"] = Field(default="test", description="M3D_VQA_test.csv or M3D_VQA_test5k.csv")


class M3d(Adapter):
    """Captions, closed and open questions, referring expressions (REC) and region captions (REG) in 3D.

    Volumes are arrays with values 0..1 as M3D's own scripts prepare them; where left is, they do not say, and it is not
    guessed. Boxes are counted in the array's own indices: x along the last axis, z along the first.

    M3D-Seg is read in its prepared form (one file for each mask), and as published: sparse masks of whole scans, whose
    volumes are then unpacked to 0..255 with slices first; nothing is cropped or resized. Answers to REC are boxes
    alone, answers to REG names alone; M3D's own training draws phrases around them. It has no validation split for
    them. In M3D-RefSeg the answer's "[SEG]" becomes the box of what is segmented.
    """

    name = "m3d"
    title = "M3D-Data: captions, questions and boxes of CT volumes"
    version = "1.1"
    licence = "Apache-2.0 tag on the hub; the images are Radiopaedia's, by permission: for research only"
    access = (
        "huggingface.co/GoodBaiBai88: M3D-Cap, M3D-VQA, M3D-Seg, M3D-RefSeg; prepare M3D-Cap and M3D-RefSeg to .npy "
        "with the scripts in Data/process of github.com/BAAI-DCAI/M3D"
    )
    tasks: ClassVar[Mapping[str, str]] = {
        "caption": "describe the findings (M3D-Cap)",
        "vqa_closed": "multiple-choice questions, 'B. the answer' (M3D-VQA)",
        "vqa_open": "the same questions without choices",
        "vqa_yn": "yes-or-no questions; training only",
        "rec": "where is this organ or lesion? The answer is a box (M3D-Seg)",
        "reg": "what is in this box? The answer is a name (M3D-Seg)",
        "refseg": "find what the text describes; the answer names it with its box (M3D-RefSeg)",
    }
    splits: ClassVar[Mapping[str, str]] = {
        "train": "train",
        "val": "validation (val in M3D-VQA; none in M3D-Seg and M3D-RefSeg)",
        "test": "test (options caption_test and vqa_test)",
    }
    layout = """
M3D_Cap_npy/M3D_Cap.json                        {"train": [{"image": "ct_quizze/.../x.npy", "text": ".../text.txt"}]}
M3D_Cap_npy/ct_quizze/000007/Axial.npy, text.txt
M3D-VQA/M3D_VQA_train.csv, M3D_VQA_val.csv, M3D_VQA_test.csv, M3D_VQA_test5k.csv, M3D_VQA_yn_train.csv
M3D_Seg_npy/0000/0000.json                      {"labels": {"1": "liver"}, "train": [{"image", "label"}], "test": [...]}
M3D_Seg_npy/0000/1/image.npy, masks/mask_0.npy  or M3D_Seg/0000/1/image.npy, mask_(1, 512, 512, 265).npz
M3D_RefSeg_npy/M3D_RefSeg.csv (or M3D_RefSeg_train.csv), M3D_RefSeg_test.csv
M3D_RefSeg_npy/s0000/ct.npy, mask.npy
"""
    Options = M3dOptions

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        named = {"caption_test": "M3D-Cap", "vqa_test": "M3D-VQA"} if split == "test" else {}
        needed = [part for option, part in named.items() if option in self.options.model_fields_set]
        there = self.parts(split, tasks, partial(self._finders, tasks), needed)
        if "M3D-Cap" in there:
            yield from self.each(there["M3D-Cap"], partial(self._caption, split))
        if "M3D-VQA" in there:
            wanted = [task for task in _CHOICE_OR_OPEN if task in tasks]
            yield from self.each(there["M3D-VQA"], partial(self._question, split, wanted))
        if "M3D-VQA, yes or no" in there:
            yield from self.each(there["M3D-VQA, yes or no"], partial(self._question, split, ["vqa_yn"]))
        for folder in there.get("M3D-Seg", ()):
            wanted = [task for task in _REGIONS if task in tasks]
            yield from self.each(_masks(folder, split), partial(self._segmented, split, wanted, folder))
        if "M3D-RefSeg" in there:
            yield from self.each(there["M3D-RefSeg"], partial(self._refseg, split))

    def _finders(self, tasks: Collection[str], split: str) -> Finders[Iterable[Any]]:
        """Return what finds the rows, or folders, of the parts that some tasks are made of."""
        questions = {"train": "train", "val": "val", "test": self.options.vqa_test}[split]
        found: dict[str, Callable[[], Iterable[Any]]] = {}
        if "caption" in tasks:
            found["M3D-Cap"] = partial(self._texts, split)
        if set(tasks) & set(_CHOICE_OR_OPEN):
            found["M3D-VQA"] = partial(self._questions, questions)
        if "vqa_yn" in tasks and split == "train":
            found["M3D-VQA, yes or no"] = partial(self._questions, "yn_train")
        if split != "val" and set(tasks) & set(_REGIONS):
            found["M3D-Seg"] = self._sets
        if split != "val" and "refseg" in tasks:
            found["M3D-RefSeg"] = partial(self._referred, split)
        return found

    def _file(self, relative: str, folder: Path) -> str:
        """Return a file that is named relative to the root or to the folder of its set, whatever that is called here.

        Where it lies is told by the folders, not by the file, which may be missing.
        """
        first, _, rest = relative.replace("\\", "/").partition("/")
        if (self.root / first).is_dir():
            return self.path(relative)
        return self.path(rest if first in (*_CAP, *_REFSEG) else relative, folder)

    @cached_property
    def _captioned(self) -> Path:
        return self._folder(_CAP)

    @cached_property
    def _described(self) -> Path:
        return self._folder(_REFSEG)

    def _folder(self, names: Sequence[str]) -> Path:
        """Return the folder of one set; the root, where none of its names is there."""
        return next((self.root / name for name in names if (self.root / name).is_dir()), self.root)

    # M3D-Cap.

    def _texts(self, split: str) -> Iterator[Row | BadRow]:
        key = self.options.caption_test if split == "test" else _OFFICIAL[split]
        name = "M3D_Cap_eh.json" if key == "hard_test" else "M3D_Cap.json"
        return json_rows(self.find(*(f"{folder}/{name}" for folder in _CAP), name), key)

    def _caption(self, split: str, row: Row) -> Iterator[Sample]:
        folder = self._captioned
        volume, text = self._file(row.text("image"), folder), self._file(row.text("text"), folder)
        key = f"caption-{Path(volume).relative_to(self.root).with_suffix('').as_posix()}"
        question, answer = draw("m3d_caption", key, split), _findings(text)
        yield self.sample(key, split, "caption", question, answer, [_volume(volume)], **_meta(volume, "open"))

    # M3D-VQA.

    def _questions(self, part: str) -> Iterator[Row | BadRow]:
        name = f"M3D_VQA_{part}.csv"
        return csv_rows(self.find(f"M3D-VQA/{name}", f"M3D_VQA/{name}", name), ("Image Path", "Question", "Answer"))

    def _question(self, split: str, tasks: Sequence[str], row: Row) -> Iterator[Sample | SampleError]:
        volume = self._file(row.text("Image Path"), self._captioned)
        asked, answer = row.text("Question"), row.text("Answer")
        file, _, line = row.place.rpartition(".csv:")
        meta = _meta(volume, "open") | {"question_type": _TYPES.get(row.optional("Question Type"), "")}
        for task in tasks:
            key = f"{file}-{line}-{task}"
            if task == "vqa_yn" and (choices := yes_no(answer)):
                told = meta | {"answer_type": "closed", "choices": choices}
                yield self.sample(key, split, task, asked, answer, [_volume(volume)], **told)
                continue
            if task != "vqa_closed":
                yield self.sample(key, split, task, asked, answer, [_volume(volume)], **meta)
                continue
            try:
                question, target, choices = _closed(row, asked, answer)
            except ValueError as error:
                yield SampleError(str(error), key, row.place)
                continue
            told = meta | {"answer_type": "choice", "choices": choices}
            yield self.sample(key, split, task, question, target, [_volume(volume)], **told)

    # M3D-Seg.

    def _sets(self) -> list[Path]:
        """Return the folders 0000, 0001, ... that have a list of their own."""
        base = self.find("M3D_Seg_npy", "M3D_Seg", "M3D-Seg")
        folders = sorted(folder for folder in base.iterdir() if (folder / f"{folder.name}.json").is_file())
        return folders or [self.find(f"{base.name}/0000/0000.json").parent]

    def _segmented(self, split: str, tasks: Collection[str], folder: Path, row: Row) -> Iterator[Sample | SampleError]:
        """Yield the samples of one mask, or of all classes of a sparse one."""
        volume, mask = (self._inside(row.text(field), folder) for field in ("image", "label"))
        names: Mapping[str, str] = row.data["names"]
        if _SPARSE.fullmatch(Path(mask).name):
            boxes = sparse_boxes(mask, _shape(volume))
            medium = self._unpacked(volume, folder)
        else:
            found = _MASK.fullmatch(Path(mask).name)
            if found is None:
                raise ValueError(
                    f"mask {Path(mask).name!r} is named neither mask_0.npy nor mask_(1, 512, 512, 265).npz"
                )
            array = _array(mask)
            if array.shape != _shape(volume):
                raise ValueError(f"its mask is {list(array.shape)}, its volume {list(_shape(volume))}")
            boxes, medium = {int(found[1]): extent(array)}, _volume(volume)
        case = f"{folder.name}/{Path(volume).parent.relative_to(folder).as_posix()}"
        meta = {"patient": case, "modality": "ct"}
        for number, coords in boxes.items():
            key = f"{case}-{number}"
            if str(number + 1) not in names:
                yield SampleError(f"{folder.name}.json names no class {number + 1}", key, row.place)
                continue
            box = Box(coords=coords, label=names[str(number + 1)])
            yield from regions(self, key, split, tasks, medium, box, "m3d", **meta)

    def _inside(self, name: str, folder: Path) -> str:
        """Return a file of M3D-Seg: what follows "0000/", for prepared lists name places on their authors' disk."""
        *_, tail = re.split(rf"(?:^|/){folder.name}/", name.replace("\\", "/"), maxsplit=1)
        return self.path(tail, folder if tail != name else folder.parent)

    def _unpacked(self, volume: str, folder: Path) -> Volume:
        """Unpack a volume [1, X, Y, Z] of M3D-Seg as published, whose values are standardised: uint8 [Z, Y, X]."""
        name = Path(volume).relative_to(folder.parent).as_posix()
        content = io.BytesIO()
        np.save(content, _to_bytes(volume))
        return Volume(path=self.unpack(f"m3d_seg/{name}", content.getvalue()) + "#unit=0..255")

    # M3D-RefSeg.

    def _referred(self, split: str) -> Iterator[Row | BadRow]:
        names = ("M3D_RefSeg.csv", "M3D_RefSeg_train.csv") if split == "train" else ("M3D_RefSeg_test.csv",)
        file = self.find(*(f"{folder}/{name}" for folder in _REFSEG for name in names), *names)
        return csv_rows(file, ("Image", "Mask", "Mask_ID", "Question", "Answer"))

    def _refseg(self, split: str, row: Row) -> Iterator[Sample]:
        # The published table names the NIfTI files that the arrays are made of.
        volume, mask = (
            self._file(row.text(field).replace(".nii.gz", ".npy"), self._described) for field in ("Image", "Mask")
        )
        array, number = _array(mask), row.text("Mask_ID").removesuffix(".0")
        if not number.isdecimal():
            raise ValueError(f"Mask_ID is a number, got {number!r}")
        if array.shape != _shape(volume):
            raise ValueError(f"its mask is {list(array.shape)}, its volume {list(_shape(volume))}")
        question, answer = row.text("Question"), row.text("Answer")
        before, mark, after = answer.partition("[SEG]")
        if "[SEG]" in after:
            raise ValueError("its answer has [SEG] several times, for one mask")
        words = tuple(piece for piece in (before if mark else f"{answer} ", 0, after) if piece == 0 or piece.strip())
        box = Box(coords=extent(array == int(number)))
        file, _, line = row.place.rpartition(".csv:")
        meta = _meta(volume, "") | {"question_type": row.optional("Question_Type")}
        yield self.sample(f"{file}-{line}", split, "refseg", question, words, [_volume(volume)], [box], **meta)


def _volume(path: str) -> Volume:
    return Volume(path=f"{path}#unit=0..1")


def _meta(volume: str, answer_type: str) -> dict[str, Any]:
    """Return what is known of a volume; its folder is one case of one patient."""
    return {"patient": "/".join(Path(volume).parts[-3:-1]), "modality": "ct", "answer_type": answer_type}


def _findings(path: str) -> str:
    """Return what a text file says: after "study_findings:", else after "discussion:", else all of it.

    Raises:
        ValueError: no such file, too long, no UTF-8, or nothing in it.
    """
    try:
        if os.path.getsize(path) > _LONGEST_TEXT:
            raise ValueError(f"{path}: is longer than {_LONGEST_TEXT:,} bytes; no caption is")
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    sections = [text.partition(mark)[2] for mark in ("study_findings:", "discussion:")]
    found = next((one for one in sections if len("".join(one.split())) >= _FEWEST_LETTERS), text)
    if not found.strip():
        raise ValueError(f"{path}: says nothing")
    return " ".join(found.split())


def _closed(row: Row, asked: str, answer: str) -> tuple[str, str, tuple[str, ...]]:
    """Return the closed form of a question, its answer "B. text", and its choices.

    Raises:
        ValueError: a choice is missing, or the answer is none of the letters.
    """
    choices = tuple(row.text(f"Choice {letter}") for letter in "ABCD")
    letter = row.text("Answer Choice")
    if letter not in ("A", "B", "C", "D"):
        raise ValueError(f"Answer Choice is A, B, C or D, got {letter!r}")
    listed = " ".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    return f"{asked} Choices: {listed}", f"{letter}. {answer}", choices


def _masks(folder: Path, split: str) -> Iterator[Row | BadRow]:
    """Yield one list of M3D-Seg: {"image", "label", "names"}, where names are those of the classes from "1" on."""
    file = folder / f"{folder.name}.json"
    whole = {row.data["key"]: row.data["value"] for row in json_items(file) if isinstance(row, Row)}
    names, items = whole.get("labels"), whole.get(split)
    if not isinstance(names, dict) or not isinstance(items, list):
        raise TableError(f'{file}: has no object "labels" and list {split!r}; it has {", ".join(whole) or "nothing"}')
    for number, item in enumerate(items, start=1):
        place = f"item {number} of {split!r} in {file.name}"
        yield Row(place, {**item, "names": names}) if isinstance(item, dict) else BadRow(place, "is no object")


def _array(path: str) -> np.ndarray:
    """Map an array [D, H, W] or [1, D, H, W] of numbers; nothing is read yet. Returns [D, H, W].

    Raises:
        ValueError: no such file, no .npy, cut off, objects, another shape, or too large.
    """
    try:
        array = npy.open_memmap(path, mode="r")
    except Exception as error:  # numpy's parser of headers answers damaged files with many kinds
        raise ValueError(f"{path}: cannot be read as .npy: {error}") from error
    if array.dtype.kind not in "buif" or array.ndim not in (3, 4) or (array.ndim == 4 and len(array) != 1):
        raise ValueError(f"{path}: holds {array.dtype} {list(array.shape)}; [D, H, W] or [1, D, H, W] is expected")
    check_voxels(path, array.shape[-3:])
    return array.reshape(array.shape[-3:])


def _shape(path: str) -> tuple[int, ...]:
    return _array(path).shape


def extent(mask: np.ndarray) -> Coords:
    """Return the box (x0, y0, z0, x1, y1, z1), upper corner exclusive, around all of [D, H, W] that is not 0.

    Raises:
        ValueError: there is nothing.
    """
    found = mask != 0
    planes = found.any(axis=(1, 2))
    if not planes.any():
        raise ValueError("its mask is empty")
    rest = found[planes]
    axes = (rest.any(axis=(0, 1)), rest.any(axis=(0, 2)), planes)
    ends = [np.flatnonzero(axis)[[0, -1]].tolist() for axis in axes]
    (x0, x1), (y0, y1), (z0, z1) = ends
    return x0, y0, z0, x1 + 1, y1 + 1, z1 + 1


def sparse_boxes(path: str, shape: Sequence[int]) -> dict[int, Coords]:
    """Return class -> box of a file mask_(C, X, Y, Z).npz, one sparse row [X * Y * Z] for each class; none is unfolded.

    Args:
        path: the file; scipy's compressed sparse rows.
        shape: (X, Y, Z) of its volume.

    Returns:
        (x0, y0, z0, x1, y1, z1), upper corner exclusive, of the classes that are there.

    Raises:
        ValueError: another shape, another kind of sparse matrix, a place outside, or no class at all.
    """
    name = Path(path).name
    classes, *stated = map(int, _SPARSE.fullmatch(name)[1].split(","))
    if tuple(stated) != tuple(shape):
        raise ValueError(f"its mask {name} is of another size than its volume, {list(shape)}")
    with npz_file(path) as archive:
        if npz_array(archive, "format").tolist() not in (b"csr", "csr"):
            raise ValueError(f"its mask {name} is no matrix of compressed sparse rows")
        starts, places = npz_array(archive, "indptr"), npz_array(archive, "indices")
    whole = starts.ndim == places.ndim == 1 and starts.dtype.kind == places.dtype.kind == "i"
    if (
        not whole
        or len(starts) != classes + 1
        or starts[0] != 0
        or starts[-1] != len(places)
        or np.diff(starts).min() < 0
    ):
        raise ValueError(f"its mask {name} is damaged: its rows do not fit its places")
    found = {}
    for number in range(classes):
        inside = places[starts[number] : starts[number + 1]]
        if len(inside):
            found[number] = _around(inside, stated, name)
    if not found:
        raise ValueError(f"its mask {name} is empty")
    return found


def _around(places: np.ndarray, shape: Sequence[int], name: str) -> Coords:
    if places.min() < 0 or places.max() >= np.prod(shape):
        raise ValueError(f"its mask {name} is damaged: a place lies outside")
    steps = (shape[1] * shape[2], shape[2], 1)
    low, high = [], []
    for step, size in zip(steps, shape, strict=True):  # one axis in memory at a time, for a body fills millions
        axis = places // step % size
        low.append(int(axis.min()))
        high.append(int(axis.max()) + 1)
    return (*low, *high)


def _to_bytes(path: str) -> np.ndarray:
    """Return a volume [X, Y, Z] of any range as uint8 [Z, Y, X], its least value 0, its largest 255.

    Raises:
        ValueError: NaN, or one value everywhere.
    """
    array = _array(path)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all() or low == high:
        raise ValueError(f"{path}: shows nothing: its values go from {low:g} to {high:g}")
    shown = np.empty(array.shape[::-1], np.uint8)
    for x, plane in enumerate(array):  # one plane in memory at a time
        shown[:, :, x] = np.rint((plane.astype(np.float32) - low) * (255 / (high - low))).T
    return shown
