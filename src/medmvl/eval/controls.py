"""How much of a score comes from picture or volume: the same questions with a blank one, another patient's, or none."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from medmvl.core.boxes import Coords
from medmvl.core.schema import BoxRef, Image, Sample, Text, Volume
from medmvl.imaging.geometry import chain, identity, invert, scaling, transform_box
from medmvl.imaging.read import read_image
from medmvl.imaging.volume import Volume as ReadVolume


@dataclass(frozen=True)
class NotAsked:
    """A question that has no form under a control or probe, and why; no fault of the sample or the model."""

    reason: str


@dataclass(frozen=True, eq=False)
class BodyFrame:
    """The way from a file's frame to shares of what it shows, in which boxes of different files can be compared.

    Shares run from 0 to 1 along a picture's columns and rows, and along a volume's axes in the canonical orientation,
    however the file is laid out.

    Attributes:
        to_shares: float64 [n, n + 1], see `imaging.geometry`.
    """

    to_shares: np.ndarray

    def shares(self, box: Coords) -> Coords:
        """Return a box of the file's frame in shares."""
        return transform_box(box, self.to_shares)

    def box(self, shares: Coords) -> Coords:
        """Return the box in the file's frame."""
        return transform_box(shares, invert(self.to_shares))


@lru_cache(maxsize=65536)
def body_frame(path: str) -> BodyFrame:
    """Return the frame of a picture's or volume's file.

    Raises:
        ImageError: it cannot be read.
    """
    shown = read_image(path)
    sides = shown.array.shape[:3] if isinstance(shown, ReadVolume) else shown.array.shape[:2]
    first = shown.original.to_canonical if isinstance(shown, ReadVolume) else identity(2)
    return BodyFrame(chain(first, scaling(*(1 / side for side in sides[::-1]))))


def blank(sample: Sample) -> Sample:
    """Return the sample with an even grey in place of every picture and volume; text and box coordinates stay."""
    return _changed(sample, [{"blank": True}] * len(sample.media))


def question_only(sample: Sample) -> Sample | NotAsked:
    """Return what is asked as words alone, without any picture or volume, and without the answer.

    A box is told in the frame of what a model sees of its picture, so a question with one has no such form.
    """
    asked = sample.prompt()
    parts = [part for message in asked.messages for part in message.content]
    if any(isinstance(part, BoxRef) for part in parts):
        return NotAsked("a box in it has no place without its picture or volume")
    if not any(isinstance(part, Text) and part.text.strip() for part in asked.messages[-1].content):
        return NotAsked("it asks nothing in words")
    messages = tuple(
        message.model_copy(
            update={"content": tuple(part for part in message.content if not isinstance(part, Image | Volume))}
        )
        for message in asked.messages
    )
    meta = asked.meta.model_copy(update={"boxes": ()})
    return asked.model_copy(update={"messages": messages, "meta": meta})


def with_media(sample: Sample, paths: Sequence[str]) -> Sample:
    """Return the sample with the files of its media replaced, in reading order; nothing else changes."""
    return _changed(sample, [{"path": path} for path in paths])


def shuffle(samples: Sequence[Sample], seed: int = 0) -> list[Sample | None]:
    """Return the samples with their media replaced by another patient's of the same modality and the same count.

    Questions that shared their media still do. Boxes move to the same shares of what the other file shows, for its
    frame may be another. Where no patient owns more than half of the media, each set of media is used exactly once, so
    the pictures as a whole stay what they were and only the pairing with questions is lost.

    Args:
        samples: the samples of one task, with their patients and modalities.
        seed: of the pairing.

    Returns:
        One entry per sample; None where the modality knows no second patient.
    """
    kinds: dict[tuple[str, ...], dict[tuple[str, ...], str]] = defaultdict(dict)
    for sample in samples:
        kinds[_kind(sample)].setdefault(sample.media_key, sample.patient)
    rng = np.random.default_rng(seed)
    donors = {kind: _pair(owners, rng) for kind, owners in kinds.items()}
    shuffled: list[Sample | None] = []
    for sample in samples:
        donor = donors[_kind(sample)].get(sample.media_key)
        shuffled.append(None if donor is None else _moved(sample, donor))
    return shuffled


def _pair(owners: Mapping[tuple[str, ...], str], rng: np.random.Generator) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Give every set of media one that belongs to another patient, if there is any."""
    by_patient: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for media, patient in owners.items():
        by_patient[patient].append(media)
    patients = [sorted(by_patient)[i] for i in rng.permutation(len(by_patient))]
    if len(patients) < 2:
        return {}
    # Laid out patient by patient, a turn by at least the longest stretch leads every one out of its own patient.
    ring = [media for patient in patients for media in by_patient[patient]]
    longest = max(map(len, by_patient.values()))
    if len(ring) >= 2 * longest:
        turn = int(rng.integers(longest, len(ring) - longest + 1))
        return {media: ring[(i + turn) % len(ring)] for i, media in enumerate(ring)}
    pairs = {}
    for media in ring:
        others = [other for other in ring if owners[other] != owners[media]]
        pairs[media] = others[int(rng.integers(len(others)))]
    return pairs


def _moved(sample: Sample, paths: Sequence[str]) -> Sample:
    """Return the sample about other files, its boxes in their frames."""
    changed = with_media(sample, paths)
    if not sample.meta.boxes:
        return changed
    try:
        frames = [(body_frame(old), body_frame(new)) for old, new in zip(sample.media_key, paths, strict=True)]
    except ValueError:
        return changed  # the model will be asked to read that file, and what is wrong with it will be listed
    boxes = []
    for box in sample.meta.boxes:
        own, other = frames[box.media]
        same = np.array_equal(own.to_shares, other.to_shares)
        boxes.append(box if same else box.model_copy(update={"coords": other.box(own.shares(box.coords))}))
    return changed.model_copy(update={"meta": sample.meta.model_copy(update={"boxes": tuple(boxes)})})


def _kind(sample: Sample) -> tuple[str, ...]:
    return (sample.meta.modality, *(media.type for media in sample.media))


def _changed(sample: Sample, updates: Sequence[Mapping[str, object]]) -> Sample:
    """Return the sample with fields of its media replaced, one update for each of them in reading order."""
    left = iter(updates)
    messages = tuple(
        message.model_copy(
            update={
                "content": tuple(
                    part.model_copy(update=next(left)) if isinstance(part, Image | Volume) else part
                    for part in message.content
                )
            }
        )
        for message in sample.messages
    )
    return sample.model_copy(update={"messages": messages})
