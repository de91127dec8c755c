"""How much of a score comes from the picture: the same questions with a blank one, or with another patient's."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from medmvl.core.schema import Image, Sample, Volume
from medmvl.imaging.read import read_image

_GREY = 128  # half of 8 bit: what `imaging.prepare.blank` calls neutral


@lru_cache(maxsize=65536)
def frame_size(path: str) -> tuple[int, int]:
    """Return the extent of a picture file's frame in the order of box coordinates: (W, H)."""
    array = read_image(path).array
    return array.shape[1], array.shape[0]


def blank(sample: Sample, folder: Path) -> Sample:
    """Return the sample with every picture replaced by an even grey one of the same size, written into `folder`.

    Text and box coordinates stay, and so does the road that the picture takes to the model.
    """
    paths = []
    for media in sample.media:
        width, height = frame_size(media.path)
        path = folder / f"blank_{width}x{height}.png"
        if not path.exists():
            PillowImage.new("L", (width, height), _GREY).save(path)
        paths.append(str(path))
    return with_media(sample, paths)


def with_media(sample: Sample, paths: Sequence[str]) -> Sample:
    """Return the sample with the files of its media replaced, in reading order; nothing else changes."""
    left = iter(paths)
    messages = tuple(
        message.model_copy(update={"content": tuple(_with_path(part, left) for part in message.content)})
        for message in sample.messages
    )
    return sample.model_copy(update={"messages": messages})


def shuffle(samples: Sequence[Sample], seed: int = 0) -> list[Sample | None]:
    """Return the samples with their media replaced by another patient's of the same modality and the same count.

    Questions that shared their media still do. Where no patient owns more than half of the media, each set of media
    is used exactly once, so the pictures as a whole stay what they were and only the pairing with questions is lost.

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
        shuffled.append(None if donor is None else with_media(sample, donor))
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


def _kind(sample: Sample) -> tuple[str, ...]:
    return (sample.meta.modality, *(media.type for media in sample.media))


def _with_path(part: object, left: Iterator[str]) -> object:
    return part.model_copy(update={"path": next(left)}) if isinstance(part, Image | Volume) else part
