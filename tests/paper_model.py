"""A small store in the manner of Brain-Atlas, and a model made of paper that knows its answers by picture."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image as PillowImage

from medmvl.core.boxes import BoxFormat
from medmvl.core.schema import Box, BoxRef, Image, Message, Meta, Part, Sample, SampleError, Text
from medmvl.data.store import write_samples

SIZE = (64, 48)


class PaperModel:
    """Answers what the picture's own sample of that task says, wrong at a fixed rate; blind to unknown pictures."""

    def __init__(self, samples: Sequence[Sample], errs: float = 0.0, broken: Sequence[str] = ()) -> None:
        self._of_picture = {(s.media_key, s.task, words(s.prompt())): words(s, answer=True) for s in samples}
        for sample in samples:
            self._of_picture.setdefault((sample.media_key, sample.task), words(sample, answer=True))
        self._blind = {sample.task: words(sample, answer=True) for sample in samples}
        self._errs, self._broken = errs, set(broken)
        self.asked: list[list[Sample]] = []
        self.processor = SimpleNamespace(boxes_from_text=lambda text, sample: BoxFormat().parse_boxes(text, SIZE))

    def generate(self, samples: Sequence[Sample], max_new_tokens: int, temperature: float) -> list[str]:
        for sample in samples:
            if sample.id in self._broken:
                raise SampleError("the file is cut off", sample.id, sample.media_key[0])
        self.asked.append(list(samples))
        return [self._answer(sample) for sample in samples]

    def _answer(self, sample: Sample) -> str:
        if not sample.media or any(media.blank for media in sample.media):
            return self._blind[sample.task]
        key = (sample.media_key, sample.task, words(sample))
        draw = int(hashlib.sha256(repr((Path(key[0][0]).name, *key[1:])).encode()).hexdigest()[:8], 16) / 16**8
        if draw < self._errs:
            return self._blind[sample.task]
        return self._of_picture.get(key) or self._of_picture.get(key[:2]) or self._blind[sample.task]


def words(sample: Sample, answer: bool = False) -> str:
    """Return a turn as text, boxes written out."""
    parts = sample.messages[-1 if answer else 0].content
    coords = [box.coords for box in sample.meta.boxes]
    return "".join(
        p.text if isinstance(p, Text) else BoxFormat().format_box(coords[p.box], SIZE) for p in parts if _said(p)
    )


def _said(part: Part) -> bool:
    return isinstance(part, Text | BoxRef)


def write_store(folder: Path, patients: int = 12, studies: int = 2) -> list[Sample]:
    """Write the store `folder` with splits train and test, and return the test samples."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    samples: list[Sample] = []
    for number in range(2 * patients):
        split, patient = ("test", "train")[number >= patients], f"p{number:02d}"
        for study in range(studies):
            path = folder / "images" / f"{patient}-{study}.png"
            PillowImage.fromarray(rng.integers(0, 255, SIZE[::-1], np.uint8)).save(path)
            samples += _questions(f"{patient}-{study}", patient, split, str(path), number + study)
    write_samples(folder, samples, name="brain_atlas", version="0", licence="none", seed=0)
    return [sample for sample in samples if sample.split == "test"]


def _questions(name: str, patient: str, split: str, path: str, number: int) -> list[Sample]:
    side = ("left", "right")[number % 2]
    corner = (8.0 + number % 16, 4.0, 24.0 + number % 16, 20.0)
    options = ("left frontal lobe", "right frontal lobe")

    def sample(task: str, asked: Sequence[Part], told: Sequence[Part], **meta: object) -> Sample:
        turns = (("user", (Image(path=path), *asked)), ("assistant", tuple(told)))
        messages = tuple(Message(role=role, content=content) for role, content in turns)
        about = Meta(patient=patient, modality="MR", **meta)
        task = f"brain_atlas/{task}"
        return Sample(id=f"{name}-{task}", messages=messages, source="brain_atlas", task=task, split=split, meta=about)

    listed = "Where is it? (A) left frontal lobe (B) right frontal lobe"
    letter = "(A)" if side == "left" else "(B)"
    report = f"Axial T1 image. There is a small bright lesion in the {side} frontal lobe."
    box = (Box(coords=corner, label="lesion"),)
    return [
        sample("side", [Text(text="Left or right?")], [Text(text=side)], choices=("left", "right")),
        sample("choice", [Text(text=listed)], [Text(text=letter)], choices=options),
        sample("report", [Text(text="Write the findings.")], [Text(text=report)]),
        sample("rec", [Text(text="Locate the lesion.")], [BoxRef(box=0)], boxes=box),
        sample("reg", [Text(text="Name "), BoxRef(box=0), Text(text=".")], [Text(text=f"{side} lesion")], boxes=box),
    ]


def nothing(prediction: str, reference: str) -> float:
    """A metric without a value."""
    return float("nan")
