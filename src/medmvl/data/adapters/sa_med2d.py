"""SA-Med2D-20M: pictures of 34 modalities with masks of organs and lesions, asked about as boxes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from medmvl.core.config import Strict
from medmvl.core.lookup import choices_text
from medmvl.core.schema import Box, Image, Sample, SampleError
from medmvl.data.adapters.base import Adapter
from medmvl.data.adapters.regions import corners, regions
from medmvl.data.rows import BadRow, Row, TableError, json_items, json_rows
from medmvl.imaging.picture import check_pixels
from medmvl.imaging.read import read_picture

Classes = Mapping[str, Mapping[str, str]]
"""Data set -> id of a class -> its name."""

Named = dict[str, list[tuple[str, str]]]
"""Id of a class -> (instance, path) of its masks on one image."""

_MASK = re.compile(r"(\d{4})_(\d{3})")
_FRAME = re.compile(r"[_-](?:frame|phase|time|slice)[_-]?\d+$", re.IGNORECASE)  # of one patient's series
_INVERTED = frozenset({"ichallenge_adam_task2"})
_UNIONS = frozenset({("ACDC", "0003", "000")})


class SaMed2dOptions(Strict):
    """Which masks are usable, and how the data are split."""

    test_share: float = Field(default=0.1, ge=0, le=1, description="of the cases; the data set itself has no split")
    smallest: int = Field(default=16, ge=1, description="pixels; a mask, or a part of one, below it is refused")
    largest: float = Field(default=0.9, gt=0, le=1, description="share of the image; a mask above it is refused")
    instances: Literal["auto", "file", "component"] = Field(
        default="auto",
        description="one box per mask file, or per connected part of it; auto: parts, where all masks of a class on an "
        "image are numbered 000",
    )


class SaMed2d(Adapter):
    """Referring expressions (REC: name to box) and region captions (REG: box to name).

    Boxes are what the masks cover (any value above 0). Refused, each with its reason: masks that are nearly empty or
    cover nearly all, those of another size than their image, all of `ichallenge_adam_task2` (published inverted) and
    ACDC's `0003_000` (a union of the others). In parts of a mask, specks below `smallest` are no instances.

    All images of a case go to one split, drawn from a hash of data set and original name, the number of a frame, phase,
    time or slice left out; modalities of one case stay together. Cases that several of the data sets share do not.

    Uni-Med's prepared folders are read as well; they have a split of their own.
    """

    name = "sa_med2d"
    title = "SA-Med2D-20M: boxes of organs and lesions"
    version = "1.0"
    licence = "CC-BY-NC-SA-4.0"
    access = (
        "huggingface.co/datasets/OpenGVLab/SA-Med2D-20M; join SA-Med2D-16M.z01 ... .zip (zip -s=0 --out), then unzip"
    )
    tasks: ClassVar[Mapping[str, str]] = {
        "rec": "where is this? The answer is a box",
        "reg": "what is in this box? The answer is a name",
    }
    splits: ClassVar[Mapping[str, str]] = {
        "train": "none; the cases that are not drawn for test (Uni-Med: train)",
        "test": "none; a share of the cases (Uni-Med: test)",
    }
    layout = """
SAMed2D_v1.json                      {"images/ct_00--A--case--x_0006.png": ["masks/...--0001_000.png", ...], ...}
SAMed2D_v1_class_mapping_id.json     {"A": {"liver": "0001", ...}, ...}
images/ct_00--A--case--x_0006.png
masks/ct_00--A--case--x_0006--0001_000.png

or, as Uni-Med prepared it:
images_small_train/<modality>/<image>.png        and images_small_test
regions_small_train/<modality>/<image>.json      [{"liver": [x, y, width, height]}, ...]
"""
    Options = SaMed2dOptions

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        prepared = f"regions_small_{split}"
        file = self.find("SAMed2D_v1.json", "SAMed2Dv1/SAMed2D_v1.json", prepared)
        if file.name == prepared:
            self.find(f"images_small_{split}")
            yield from self.each(_regions(file), partial(self._region, split, tasks))
            return
        classes = _classes(self.find(str(file.relative_to(self.root).with_name("SAMed2D_v1_class_mapping_id.json"))))
        yield from self.each(self._listed(file, split), partial(self._image, split, tasks, file.parent, classes))

    def _listed(self, file: Path, split: str) -> Iterator[Row | BadRow]:
        """Yield the images of one split; what cannot be told apart is told with the training images."""
        for row in json_items(file):
            if self._split(row) == split:
                yield row

    def _split(self, row: Row | BadRow) -> str:
        try:
            return (
                "train" if isinstance(row, BadRow) else split_of(image_name(row.data["key"]), self.options.test_share)
            )
        except ValueError:
            return "train"

    def _image(
        self, split: str, tasks: Collection[str], base: Path, classes: Classes, row: Row
    ) -> Iterator[Sample | SampleError]:
        picture = self.path(row.data["key"], base)
        name, (width, height) = image_name(picture), _size(picture)
        masks = row.data["value"]
        if not (isinstance(masks, list) and all(isinstance(mask, str) for mask in masks)):
            raise ValueError(f"lists its masks as a list of paths, got {masks!r:.80}")
        meta = {"patient": name.case, "modality": name.modality, "dataset": name.dataset}
        named, wrong = by_class(_stem(picture), masks)
        yield from (SampleError(told, _stem(mask), row.place) for mask, told in wrong)
        for number, instances in named.items():
            parts = self._in_parts(instance for instance, _ in instances)
            for instance, mask in instances:
                key = _stem(mask)
                try:
                    label = _label(classes, name.dataset, number)
                    _check_known(name.dataset, number, instance)
                    boxes = self._boxes(self.path(mask, base), height, width, parts)
                except ValueError as error:
                    yield SampleError(str(error), key, row.place)
                    continue
                for part, coords in enumerate(boxes):
                    box, own = Box(coords=coords, label=label), f"{key}-{part}" if parts else key
                    yield from regions(self, own, split, tasks, Image(path=picture), box, "uni_med", **meta)

    def _in_parts(self, instances: Iterable[str]) -> bool:
        """Say whether the masks of one class are cut into their connected parts."""
        if self.options.instances == "auto":
            return all(instance == "000" for instance in instances)
        return self.options.instances == "component"

    def _boxes(self, mask: str, height: int, width: int, parts: bool) -> list[tuple[int, ...]]:
        """Return the boxes (x0, y0, x1, y1), upper corner exclusive, of a mask or of its connected parts.

        Raises:
            ValueError: a mask that cannot be read, of another size, nearly empty, or covering nearly everything.
        """
        values = read_picture(mask).array > 0
        found = values.any(axis=2) if values.ndim == 3 else values
        if found.shape != (height, width):
            size = " x ".join(map(str, found.shape))
            raise ValueError(f"its mask is {size}, the image {height} x {width} (height x width)")
        covered = int(found.sum())
        if covered < self.options.smallest:
            raise ValueError(f"its mask covers {covered} pixels, fewer than {self.options.smallest}")
        if covered > self.options.largest * found.size:
            raise ValueError(f"its mask covers {covered / found.size:.0%} of the image; one that covers nearly all")
        boxes = _parts(found, self.options.smallest) if parts else [_extent(found)]
        if not boxes:
            raise ValueError(f"no part of its mask has {self.options.smallest} pixels")
        return boxes

    def _region(self, split: str, tasks: Collection[str], row: Row) -> Iterator[Sample]:
        """Yield the samples of one object of Uni-Med's prepared folders."""
        modality, stem = row.data["modality"], row.data["stem"]
        picture = self.path(f"images_small_{split}/{modality}/{stem}.png")
        if len(row.data["object"]) != 1:
            raise ValueError(f"names {len(row.data['object'])} objects; {{name: [x, y, width, height]}} is expected")
        ((label, given),) = row.data["object"].items()
        try:
            name = image_name(stem)
            meta = {"patient": name.case, "modality": modality, "dataset": name.dataset}
        except ValueError:  # its own naming is not published
            meta = {"modality": modality}
        key = f"{split}-{modality}-{stem}-{row.data['number']}"
        box = Box(coords=corners(given), label=_readable(label))
        yield from regions(self, key, split, tasks, Image(path=picture), box, "uni_med", **meta)


@dataclass(frozen=True, slots=True)
class ImageName:
    """What the name of an image says.

    Attributes:
        modality: as "mr_00" or "x_ray".
        dataset: the data set it was taken from.
        original: its name there.
        plane: axis and number of a slice ("x_0006"), or "2d_none".
    """

    modality: str
    dataset: str
    original: str
    plane: str

    @property
    def case(self) -> str:
        """Whom it shows, as far as names tell: data set and original name, without the number of a frame."""
        return f"{self.dataset}/{_FRAME.sub('', self.original)}"


def image_name(path: str) -> ImageName:
    """Return what "images/mr_00--ACDC--patient001_frame01--x_0006.png" says.

    Original names may hold "--" themselves, so the first two fields and the last are taken from the ends.

    Raises:
        ValueError: it has fewer than four fields.
    """
    stem = _stem(path)
    fields = stem.split("--")
    if len(fields) < 4 or not all(fields):
        raise ValueError(f"image {stem!r} is not named <modality>--<data set>--<original name>--<slice>.png")
    return ImageName(fields[0], fields[1], "--".join(fields[2:-1]), fields[-1])


def _stem(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name.removesuffix(".png")


def split_of(name: ImageName, test_share: float) -> str:
    """Return "train" or "test", by the case alone; a larger share keeps the cases that a smaller one draws."""
    drawn = int.from_bytes(hashlib.blake2b(name.case.encode(), digest_size=8).digest()) / 2**64
    return "test" if drawn < test_share else "train"


def mask_name(path: str) -> tuple[str, str, str]:
    """Return (stem of the image, id of the class, instance) of "masks/mr_00--...--x_0006--0002_000.png".

    Raises:
        ValueError: it does not end in a class of four digits and an instance of three.
    """
    stem = _stem(path)
    image, _, last = stem.rpartition("--")
    found = _MASK.fullmatch(last)
    if not image or found is None:
        raise ValueError(f"mask {stem!r} does not end in --<class: 4 digits>_<instance: 3 digits>.png")
    return image, found[1], found[2]


def by_class(image: str, masks: Iterable[str]) -> tuple[Named, list[tuple[str, str]]]:
    """Return the masks of one image by their class, and (path, what is wrong) of those whose names are.

    Args:
        image: stem of its file.
        masks: paths, as the data set lists them.
    """
    named: Named = {}
    wrong = []
    for mask in masks:
        try:
            stem, number, instance = mask_name(mask)
            if stem != image:
                raise ValueError(f"mask {mask!r} belongs to another image, {stem}")
        except ValueError as error:
            wrong.append((mask, str(error)))
        else:
            named.setdefault(number, []).append((instance, mask))
    return named, wrong


def _check_known(dataset: str, number: str, instance: str) -> None:
    """Refuse masks that are published wrong."""
    if dataset.casefold() in _INVERTED:
        raise ValueError(f"the masks of {dataset} are published inverted")
    if (dataset, number, instance) in _UNIONS:
        raise ValueError(f"{dataset}'s mask {number}_{instance} is a union of the others")


def _classes(file: Path) -> Classes:
    """Read the names of the classes."""
    found: dict[str, dict[str, str]] = {}
    for row in json_items(file):
        if isinstance(row, BadRow) or not isinstance(row.data["value"], dict):
            told = row.message if isinstance(row, BadRow) else "is no object of names and ids"
            raise TableError(f"{file}: {row.place}: {told}")
        names: dict[str, str] = {}
        for name, number in row.data["value"].items():
            # An id that stands for two names is told with both: no box would be sure.
            names[str(number)] = f"{names[str(number)]} or {name}" if str(number) in names else name
        found[row.data["key"]] = names
    return found


def _label(classes: Classes, dataset: str, number: str) -> str:
    if dataset not in classes:
        raise ValueError(
            f"the class mapping has no data set {dataset!r}; {choices_text(dataset, classes, 'data sets')}"
        )
    if number not in classes[dataset]:
        raise ValueError(f"the class mapping of {dataset} has no class {number!r}; it has {len(classes[dataset])}")
    return _readable(classes[dataset][number])


def _readable(label: str) -> str:
    words = " ".join(label.replace("_", " ").split())
    if not words:
        raise ValueError("the object has no name")
    return words


def _extent(found: np.ndarray) -> tuple[int, ...]:
    """Return the box around all that is True in [H, W]."""
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _parts(found: np.ndarray, smallest: int) -> list[tuple[int, ...]]:
    """Return the boxes around the connected parts (over edges and corners) that are not too small."""
    from scipy import ndimage

    left, top, right, bottom = _extent(found)
    numbers, _ = ndimage.label(found[top:bottom, left:right], np.ones((3, 3)))
    sizes = np.bincount(numbers.ravel())[1:]
    boxes = zip(ndimage.find_objects(numbers), sizes, strict=True)
    return [(x.start + left, y.start + top, x.stop + left, y.stop + top) for (y, x), size in boxes if size >= smallest]


def _size(path: str) -> tuple[int, int]:
    """Return (width, height) from the header of a picture.

    Raises:
        ValueError: no such file, or no picture.
    """
    import PIL.Image

    try:
        with PIL.Image.open(path, formats=("PNG",)) as picture:
            check_pixels(path, picture.height, picture.width)
            return picture.size
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"its image {path} cannot be read: {error}") from error


def _regions(folder: Path) -> Iterator[Row | BadRow]:
    """Yield the objects of Uni-Med's region files: {"object", "number", "stem", "modality"}."""
    for file in sorted(folder.glob("*/*.json")):
        modality, place = file.parent.name, f"{folder.name}/{file.parent.name}/{file.name}"
        try:
            rows = list(json_rows(file, may_be_empty=True))
        except TableError as error:
            yield BadRow(place, str(error))
            continue
        for number, row in enumerate(rows):
            if isinstance(row, BadRow):
                yield BadRow(f"item {number + 1} of {place}", row.message)
            else:
                data = {"object": row.data, "number": number, "stem": file.stem, "modality": modality}
                yield Row(f"item {number + 1} of {place}", data)
