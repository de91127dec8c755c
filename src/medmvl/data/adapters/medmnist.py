"""MedMNIST: 12 sets of small pictures and 6 of small volumes, each of one class or with a list of findings."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal
from zipfile import ZipFile

import numpy as np
from pydantic import Field

from medmvl.core.config import Strict
from medmvl.core.schema import Image, Sample, SampleError, Volume
from medmvl.data.adapters.base import Adapter, Media
from medmvl.data.npz import exactly, npz_array, npz_file, npz_header, npz_stream
from medmvl.data.questions import draw
from medmvl.data.rows import Row, TableError

Flag = Literal[
    "pathmnist", "chestmnist", "dermamnist", "octmnist", "pneumoniamnist", "retinamnist", "breastmnist", "bloodmnist",
    "tissuemnist", "organamnist", "organcmnist", "organsmnist", "organmnist3d", "nodulemnist3d", "adrenalmnist3d",
    "fracturemnist3d", "vesselmnist3d", "synapsemnist3d",
]  # fmt: skip

_MOST_IMAGES = 1_000_000  # of one split; the largest has 165,466
_SIDE = re.compile(r"(femur|kidney|lung)-(left|right)")
_NO_FINDING = "no finding"


@dataclass(frozen=True)
class Subset:
    """One of the sets.

    Attributes:
        image: what a question calls its pictures.
        modality: for `meta.modality`.
        labels: names of the classes, in the order of their numbers; "; " between them.
        channels: 3 for colour.
        several: an image may show any number of the labels.
    """

    image: str
    modality: str
    labels: str
    channels: int = 1
    several: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The labels as people say them: "left kidney" for "kidney-left"."""
        return tuple(_SIDE.sub(r"\2 \1", label) for label in self.labels.split("; "))

    @property
    def listing(self) -> str:
        """The labels in one line; those with commas of their own are kept apart by semicolons."""
        names = self.names
        if any(", " in name for name in names):
            return f"{'; '.join(names[:-1])}; or {names[-1]}"
        return f"{', '.join(names[:-1])}{',' if len(names) > 2 else ''} or {names[-1]}"


_ORGANS = (
    "bladder; femur-left; femur-right; heart; kidney-left; kidney-right; liver; lung-left; lung-right; pancreas; spleen"
)
# The volumes count their organs in an order of their own.
_ORGANS_3D = (
    "liver; kidney-right; kidney-left; femur-right; femur-left; bladder; heart; lung-right; lung-left; spleen; pancreas"
)

SUBSETS: dict[str, Subset] = {
    "pathmnist": Subset(
        "histology image of colorectal tissue",
        "histopathology",
        "adipose; background; debris; lymphocytes; mucus; smooth muscle; normal colon mucosa; "
        "cancer-associated stroma; colorectal adenocarcinoma epithelium",
        channels=3,
    ),
    "chestmnist": Subset(
        "chest X-ray",
        "x-ray",
        # The last but one is published as "pleural": ChestX-ray14's "Pleural_Thickening".
        "atelectasis; cardiomegaly; effusion; infiltration; mass; nodule; pneumonia; pneumothorax; consolidation; "
        "edema; emphysema; fibrosis; pleural thickening; hernia",
        several=True,
    ),
    "dermamnist": Subset(
        "multi-source dermatoscopic image of common pigmented skin lesions",
        "dermoscopy",
        "actinic keratoses and intraepithelial carcinoma; basal cell carcinoma; benign keratosis-like lesions; "
        "dermatofibroma; melanoma; melanocytic nevi; vascular lesions",
        channels=3,
    ),
    "octmnist": Subset(
        "retinal OCT image", "oct", "choroidal neovascularization; diabetic macular edema; drusen; normal"
    ),
    "pneumoniamnist": Subset("pediatric chest X-ray", "x-ray", "normal; pneumonia"),
    "retinamnist": Subset(
        "retinal fundus image, by the severity of diabetic retinopathy from 0 to 4,",
        "fundus photography",
        "0; 1; 2; 3; 4",
        channels=3,
    ),
    "breastmnist": Subset("breast ultrasound image", "ultrasound", "malignant; normal, benign"),
    "bloodmnist": Subset(
        "microscopic image of a peripheral blood cell",
        "microscopy",
        "basophil; eosinophil; erythroblast; immature granulocytes(myelocytes, metamyelocytes and promyelocytes); "
        "lymphocyte; monocyte; neutrophil; platelet",
        channels=3,
    ),
    "tissuemnist": Subset(
        "microscopic image of a kidney cortex cell",
        "microscopy",
        "Collecting Duct, Connecting Tubule; Distal Convoluted Tubule; Glomerular endothelial cells; "
        "Interstitial endothelial cells; Leukocytes; Podocytes; Proximal Tubule Segments; Thick Ascending Limb",
    ),
    "organamnist": Subset("CT image", "ct", _ORGANS),
    "organcmnist": Subset("CT image", "ct", _ORGANS),
    "organsmnist": Subset("CT image", "ct", _ORGANS),
    "organmnist3d": Subset("CT volume", "ct", _ORGANS_3D),
    "nodulemnist3d": Subset("chest CT volume of a lung nodule", "ct", "benign; malignant"),
    "adrenalmnist3d": Subset("shape of an adrenal gland from CT", "ct", "normal; hyperplasia"),
    "fracturemnist3d": Subset(
        "chest CT volume of a rib fracture",
        "ct",
        "buckle rib fracture; nondisplaced rib fracture; displaced rib fracture",
    ),
    "vesselmnist3d": Subset("shape of a brain vessel from MRA", "mr", "vessel; aneurysm"),
    "synapsemnist3d": Subset(
        "electron microscopy volume of a synapse", "microscopy", "inhibitory synapse; excitatory synapse"
    ),
}
"""Flag -> what its labels mean, as in MedMNIST's own table (`medmnist/info.py`)."""


class MedMnistOptions(Strict):
    """Which files."""

    subsets: list[Flag] | None = Field(
        default=None, description='flags, such as ["dermamnist", "organsmnist"]; default: all whose file is there'
    )
    size: Literal[28, 64, 128, 224] | None = Field(
        default=None, description="pixels along a side; default: for each subset the largest that is there"
    )


class MedMnist(Adapter):
    """Classification of pictures (unpacked to PNG) and volumes (to .npy, values 0..255, left and right unknown).

    Images are unpacked one by one; memory does not grow with the file. Counts are not compared with a release's: those
    before 2.2.4 hold some blank slices more. Nothing says which images are of one patient.
    """

    name = "medmnist"
    title = "MedMNIST v2 and MedMNIST+: 12 sets of pictures, 6 of volumes"
    version = "1.0"
    licence = "CC BY 4.0; DermaMNIST CC BY-NC 4.0"
    access = "zenodo.org/records/10519652, or the Python package medmnist, which keeps its files in ~/.medmnist"
    tasks: ClassVar[Mapping[str, str]] = {
        "classification": "which of the classes? The question lists them",
        "multilabel": "which findings, if any? (chestmnist)",
        "presence": "is this finding there? yes or no, 14 questions for an image (chestmnist)",
    }
    splits: ClassVar[Mapping[str, str]] = {"train": "train", "val": "val", "test": "test"}
    layout = """
dermamnist.npz         28 x 28 pixels; any of the 18 subsets
organsmnist_224.npz    64, 128 or 224 pixels along a side
organmnist3d_64.npz    volumes: 28 or 64
"""
    Options = MedMnistOptions

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        for flag, size, file in self._files():
            several = SUBSETS[flag].several
            if wanted := {task for task in tasks if (task != "classification") == several}:
                make = partial(self._image, flag, f"{flag}_{size}", split, wanted)
                yield from self.each(_rows(file, flag, size, split), make)

    def _files(self) -> Iterator[tuple[str, int, Path]]:
        """Yield the subsets that are meant: flag, size and file."""
        there = [flag for flag in SUBSETS if any((self.root / name).is_file() for _, name in self._names(flag))]
        if not there:
            self.find(*(self._names(flag)[-1][1] for flag in self.options.subsets or SUBSETS))
        for flag in there if self.options.subsets is None else dict.fromkeys(self.options.subsets):
            names = self._names(flag)
            file = self.find(*(name for _, name in names))
            yield flag, next(size for size, name in names if name == file.name), file

    def _names(self, flag: str) -> list[tuple[int, str]]:
        """Return the sizes and file names that may serve, the largest size first."""
        sizes = (224, 128, 64, 28) if self.options.size is None else (self.options.size,)
        names = [(size, f"{flag}_{size}.npz") for size in sizes]
        return [*names, (28, f"{flag}.npz")] if 28 in sizes else names

    def _image(self, flag: str, folder: str, split: str, tasks: Collection[str], row: Row) -> Iterator[Sample]:
        subset, number = SUBSETS[flag], row.data["id"]
        found = _found(subset, row.data["labels"])
        medium = self._medium(f"{folder}/{split}/{number:06}", row.data["image"])
        key = f"{flag}_{split}_{number}"
        if "classification" in tasks:
            yield self._classification(key, split, flag, found[0], medium)
        if "multilabel" in tasks:
            yield self._multilabel(key, split, flag, found, medium)
        if "presence" in tasks:
            for name in subset.names:
                yield self._presence(key, split, flag, name, "yes" if name in found else "no", medium)

    def _medium(self, name: str, values: np.ndarray) -> Media:
        """Unpack one image: [S, S] and [S, S, 3] to PNG, [S, S, S] to .npy."""
        content = io.BytesIO()
        if values.ndim == 3 and values.shape[2] != 3:
            np.save(content, values)
            return Volume(path=self.unpack(f"{name}.npy", content.getvalue()) + "#unit=0..255")
        import PIL.Image

        PIL.Image.fromarray(values).save(content, "PNG", compress_level=1)  # a tenth larger, written in half the time
        return Image(path=self.unpack(f"{name}.png", content.getvalue()))

    def _classification(self, key: str, split: str, flag: str, answer: str, medium: Media) -> Sample:
        subset = SUBSETS[flag]
        known = {"choices": subset.names, "answer_type": "choice", "modality": subset.modality, "subset": flag}
        question = _asked("medmnist", key, split, subset)
        return self.sample(key, split, "classification", question, answer, [medium], attributes={flag: answer}, **known)

    def _multilabel(self, key: str, split: str, flag: str, found: Collection[str], medium: Media) -> Sample:
        subset = SUBSETS[flag]
        attributes = {name: "yes" if name in found else "no" for name in subset.names}
        known = {"answer_type": "open", "modality": subset.modality, "attributes": attributes, "subset": flag}
        question = _asked("medmnist_findings", key, split, subset)
        return self.sample(key, split, "multilabel", question, ", ".join(found) or _NO_FINDING, [medium], **known)

    def _presence(self, key: str, split: str, flag: str, finding: str, answer: str, medium: Media) -> Sample:
        subset = SUBSETS[flag]
        key = f"{key}_{finding.replace(' ', '_')}"
        known = {"choices": ("yes", "no"), "answer_type": "closed", "modality": subset.modality, "subset": flag}
        question = _asked("medmnist_presence", key, split, subset).replace("{finding}", finding)
        return self.sample(key, split, "presence", question, answer, [medium], finding=finding, **known)


def _asked(pool: str, key: str, split: str, subset: Subset) -> str:
    return draw(pool, key, split).replace("{image}", subset.image).replace("{choices}", subset.listing)


def _found(subset: Subset, given: list[int]) -> list[str]:
    """Return the names of the labels that an image has.

    Raises:
        ValueError: a number that stands for none.
    """
    names = subset.names
    if subset.several:
        if set(given) - {0, 1}:
            raise ValueError(f"its labels are {given}; each of the {len(names)} is 0 or 1")
        return [name for name, value in zip(names, given, strict=True) if value]
    if not 0 <= given[0] < len(names):
        raise ValueError(f"its label is {given[0]}; known are 0 to {len(names) - 1}")
    return [names[given[0]]]


def _rows(file: Path, flag: str, size: int, split: str) -> Iterator[Row]:
    """Yield the images of one split, one in memory at a time; "dermamnist.npz, train 17" counts them from 0.

    Raises:
        TableError: no such archive, damaged, or other arrays in it than the subset has.
    """
    subset = SUBSETS[flag]
    one = (size,) * 3 if flag.endswith("3d") else (size, size, 3) if subset.channels == 3 else (size, size)
    with npz_file(file) as archive:
        labels = _labels(file, archive, split, len(subset.names) if subset.several else 1)
        with npz_stream(archive, f"{split}_images") as (stream, shape, kind):
            if kind != np.uint8 or shape != (len(labels), *one):
                wanted = f"uint8 {[len(labels), *one]}, one image for each label"
                raise TableError(f"{file}: {split}_images is {kind} {list(shape)}; {flag} at this size has {wanted}")
            for number, given in enumerate(labels.tolist()):
                image = np.frombuffer(exactly(stream, math.prod(one)), np.uint8).reshape(one)
                yield Row(f"{file.name}, {split} {number}", {"id": number, "image": image, "labels": given})


def _labels(file: Path, archive: ZipFile, split: str, width: int) -> np.ndarray:
    """Return the labels [N, width]."""
    shape, kind = npz_header(archive, f"{split}_labels")
    if kind.kind not in "ui" or len(shape) != 2 or shape[1] != width or not 0 < shape[0] <= _MOST_IMAGES:
        wanted = f"whole numbers [N, {width}]"
        raise TableError(f"{file}: {split}_labels is {kind} {list(shape)}; {wanted} were expected")
    return npz_array(archive, f"{split}_labels")
