"""Single pictures with what is known about them, for pre-training an encoder: records, their order, batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from medmvl.core.schema import Sample, SampleError, Text
from medmvl.data.mixture import Position, Step
from medmvl.data.store import SampleStore
from medmvl.imaging.augment import Augmentation
from medmvl.imaging.cache import PreparedStore
from medmvl.imaging.geometry import transform_box
from medmvl.imaging.prepare import blank
from medmvl.imaging.spec import VisionSpec
from medmvl.processing.encoded import Media, View
from medmvl.train.feed import Prepared, Refusal, text_of

NONE = "none"
"""Value of an attribute that does not apply; it is not learned."""


@dataclass
class Picture:
    """One file, and what all samples about it say.

    Attributes:
        path: the file.
        sample_id: the first sample about it, to name it in reports.
        attributes: name -> value.
        box: (x0, y0, x1, y1) in the file's frame, if the samples show exactly one.
        texts: the last answers of its samples.
    """

    path: str
    sample_id: str
    attributes: dict[str, str] = field(default_factory=dict)
    box: tuple[float, ...] | None = None
    texts: list[str] = field(default_factory=list)


def gather_pictures(stores: Iterable[SampleStore], refuse: Callable[[Refusal], None]) -> list[Picture]:
    """Return every picture once, in order of first appearance; samples with no or several media are passed over.

    Args:
        stores: read from start to end.
        refuse: told of every broken sample.

    Raises:
        ValueError: two samples give one picture different values of an attribute.
    """
    found: dict[str, Picture] = {}
    boxes: dict[str, set[tuple[float, ...]]] = {}
    for store in stores:
        for row in range(len(store)):
            try:
                sample = store[row]
            except SampleError as error:
                refuse(Refusal(error.sample_id, text_of(error.path), error.message))
                continue
            if len(sample.media) == 1:
                path = sample.media[0].path
                picture = found.setdefault(path, Picture(path, sample.id))
                _add(picture, sample)
                boxes.setdefault(path, set()).update(tuple(box.coords) for box in sample.meta.boxes)
    for path, known in boxes.items():
        found[path].box = next(iter(known)) if len(known) == 1 else None
    return list(found.values())


def _add(picture: Picture, sample: Sample) -> None:
    for name, value in sample.meta.attributes.items():
        if picture.attributes.setdefault(name, value) != value:
            raise ValueError(
                f"{picture.path}: attribute {name!r} is {picture.attributes[name]!r} in sample {picture.sample_id!r}, "
                f"but {value!r} in sample {sample.id!r}; one picture has one value"
            )
    last = sample.messages[-1]
    if last.role == "assistant":
        text = "".join(part.text for part in last.content if isinstance(part, Text)).strip()
        if text:
            picture.texts.append(text)


class Shuffled:
    """An endless, resumable order of `count` items: each epoch all of them once, in an order of its own.

    Args:
        pictures: only their paths matter, for the fingerprint.
        seed: of the shuffles.
    """

    def __init__(self, pictures: Sequence[Picture], seed: tuple[int, ...]) -> None:
        self._count, self._seed = len(pictures), seed
        text = json.dumps([[picture.path for picture in pictures], seed])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return self._count

    def steps(self, global_batch: int, start: Position) -> Iterator[Step]:
        """Yield steps of exactly `global_batch` items without end, from `start` on."""
        epoch, used = start
        waiting: list[tuple[tuple[int, int], ...]] = []
        while True:
            order = np.random.default_rng([*self._seed, epoch]).permutation(self._count)
            for place in range(used, self._count):
                waiting.append(((0, int(order[place])),))
                if len(waiting) == global_batch:
                    yield Step(tuple(waiting), Position(epoch, place + 1))
                    waiting = []
            epoch, used = epoch + 1, 0


def once(count: int, step_size: int) -> Iterator[Step]:
    """Yield steps that show items 0 to `count` once, in order."""
    for start in range(0, count, step_size):
        yield Step(tuple(((0, index),) for index in range(start, min(count, start + step_size))), Position())


@dataclass(frozen=True)
class PictureBatch:
    """Pictures and what to learn about them.

    Attributes:
        inputs: keyword arguments of the module's forward; "pixels" is float32 [B, C, H, W].
        sample_ids: one per picture.
        num_supervised: terms of the loss.
    """

    inputs: dict[str, torch.Tensor]
    sample_ids: list[str]
    num_supervised: int

    def to(self, device: torch.device) -> PictureBatch:
        """Return the batch on `device`."""
        return replace(self, inputs={name: tensor.to(device) for name, tensor in self.inputs.items()})

    def model_inputs(self) -> dict[str, Any]:
        """Return the keyword arguments of the module's forward."""
        return self.inputs


Seen = tuple[Picture, View]
Targets = Callable[[Sequence[Seen], int], tuple[Mapping[str, torch.Tensor], int]]
"""(pictures as the encoder sees them, epoch) -> (further arguments of forward, terms of the loss)."""


@dataclass
class PicturePreparer:
    """Deals the pictures of a step to the ranks and reads them.

    Attributes:
        pictures: what the items of a step index.
        targets: adds what is to be learned.
        tower, spec, num_tokens: how the encoder is fed, and the tokens it makes of a picture.
        micro_batch: pictures of one rank in one micro-step; None for all of them.
        augmentation, seed: see `Processor.encode`.
        rank, world: this process among all.
        store: see `Processor`.
    """

    pictures: Sequence[Picture]
    targets: Targets
    tower: str
    spec: VisionSpec
    num_tokens: int
    micro_batch: int | None
    augmentation: Augmentation | None
    seed: tuple[int, ...]
    rank: int
    world: int
    store: PreparedStore | None

    def __call__(self, step: Step) -> Prepared:
        """Prepare one step."""
        indices = [group[0][1] for group in step.groups]
        share = -(-len(indices) // self.world)
        size = self.micro_batch or share
        own = indices[self.rank :: self.world]
        slots = self.num_tokens * self.world * share
        prepared = Prepared([], step.after, slots=slots)
        for start in range(0, share, size):
            seen = list(self._read(own[start : start + size], step.after.epoch, prepared.refused))
            prepared.samples += len(seen)
            prepared.batches.append(self._batch(seen, step.after.epoch) if seen else None)
        prepared.tokens = prepared.samples * self.num_tokens
        return prepared

    def filler(self) -> PictureBatch:
        """Return a batch of one blank picture, for a micro-step in which this rank has nothing to learn."""
        view = View(blank(self.spec), np.eye(3)[:2], (1, 1))
        return self._batch([(self.pictures[0], view)], 0)

    def _batch(self, seen: Sequence[Seen], epoch: int) -> PictureBatch:
        targets, count = self.targets(seen, epoch)
        pixels = torch.from_numpy(np.stack([view.pixels for _, view in seen]))
        return PictureBatch({"pixels": pixels, **targets}, [picture.sample_id for picture, _ in seen], count)

    def _read(self, indices: Sequence[int], epoch: int, refused: list[Refusal]) -> Iterator[Seen]:
        for index in indices:
            picture = self.pictures[index]
            seed = (*self.seed, epoch, index)
            media = Media(
                self.tower, picture.path, -1, self.num_tokens, picture.path, picture.sample_id, self.spec,
                self.augmentation, seed, store=self.store,
            )  # fmt: skip
            try:
                yield picture, media.view
            except SampleError as error:
                refused.append(Refusal(error.sample_id, text_of(error.path), error.message))


def box_target(picture: Picture, view: View, spec: VisionSpec) -> list[float]:
    """Return the picture's box as the encoder sees it, as shares of its width and height; NaN without a box."""
    if picture.box is None or len(picture.box) != 4:
        return [float("nan")] * 4
    height, width = spec.size[-2:]
    x0, y0, x1, y1 = transform_box(picture.box, view.affine, (height, width))
    return [x0 / width, y0 / height, x1 / width, y1 / height]
