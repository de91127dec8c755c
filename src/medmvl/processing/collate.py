"""One row as tensors: what the model's forward needs, and what the loop needs to count and to name samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from medmvl.core.layout import Layout
from medmvl.processing.encoded import IGNORE, Media
from medmvl.processing.pack import Row


@dataclass(frozen=True, eq=False)
class Batch:
    """One flat row of N tokens; batch dimension 1.

    Attributes:
        ids: long [1, N], placeholders expanded.
        positions: long [1, N]; branches restart at their prefix's length.
        layout: which tokens attend to which.
        pixels: tower -> float32 [M, C, ...], one per medium and group, in the order of their placeholders; for a tower
            that reads the question [U, C, ...], each view once.
        features: tower whose encoder's features are kept -> [M, tokens, width] in place of pixels.
        media_positions: tower -> long [M * num_tokens], flat indices of the placeholders.
        logit_index: long [S], flat index of the token that predicts target s. The last token of a prefix predicts the
            first target of several branches, and is then listed several times.
        targets: long [S], the ids to learn, each supervised token of the row exactly once.
        owner: long [S], the index into `sample_ids` of the sample that target s belongs to.
        sample_ids: the samples of the row, each once.
        questions: tower that reads the question -> what it takes beside the pixels, see `questions_of`.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    layout: Layout
    pixels: dict[str, torch.Tensor]
    media_positions: dict[str, torch.Tensor]
    logit_index: torch.Tensor
    targets: torch.Tensor
    owner: torch.Tensor
    sample_ids: list[str]
    questions: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    features: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def num_supervised(self) -> int:
        """Tokens that count in the loss."""
        return len(self.targets)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch with its tensors on `device`."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        tensors = ("ids", "positions", "logit_index", "targets", "owner")
        changes: dict[str, Any] = {name: move(getattr(self, name)) for name in tensors}
        for name in ("pixels", "features", "media_positions"):
            changes[name] = {tower: move(tensor) for tower, tensor in getattr(self, name).items()}
        changes["questions"] = {
            tower: {name: move(tensor) for name, tensor in asked.items()} for tower, asked in self.questions.items()
        }
        return replace(self, **changes)

    def model_inputs(self) -> dict[str, Any]:
        """Return the keyword arguments of the model's forward."""
        names = ("ids", "positions", "layout", "pixels", "media_positions", "logit_index", "targets")
        return {name: getattr(self, name) for name in (*names, "questions", "features")}


def load_pixels(media: Media) -> np.ndarray:
    """Return the pixels of one medium as its encoder wants them, float32 [C, H, W]."""
    return media.view.pixels


def collate(row: Row, load: Callable[[Media], np.ndarray] = load_pixels) -> Batch:
    """Turn a row into tensors, reading its media.

    Args:
        row: what `pack` returned.
        load: how to get a medium's pixels, float32 [C, H, W] or [C, D, H, W], where it has no features.

    Raises:
        SampleError: a file cannot be read.
        ValueError: placeholders and media do not match, which means a sample was changed after it was encoded.
    """
    layout = row.layout
    ids, labels, owner = _flat(row)
    before = np.arange(-1, len(ids) - 1)
    for segment in layout.segments:
        before[segment.start] = segment.prefix_end - 1
    learned = np.flatnonzero(labels != IGNORE)
    if (before[learned] < 0).any():
        raise ValueError(f"row of {row.sample_ids}: a first token is to be learned, but nothing comes before it")
    media, media_positions = _media(row, ids)
    questions, pixels, features = {}, {}, {}
    for tower, shown in media.items():
        if shown[0].kept is not None:
            features[tower] = torch.from_numpy(np.stack([medium.features for medium in shown]))
            continue
        if shown[0].question is not None:
            views = {medium.key: medium for medium in shown}
            source = [list(views).index(medium.key) for medium in shown]
            questions[tower] = questions_of([medium.question or () for medium in shown], source)
            shown = list(views.values())
        pixels[tower] = torch.from_numpy(np.stack([load(medium) for medium in shown]))
    return Batch(
        ids=torch.from_numpy(ids)[None],
        positions=torch.from_numpy(np.fromiter(layout.positions(), np.int64, len(ids)))[None],
        layout=layout,
        pixels=pixels,
        media_positions=media_positions,
        logit_index=torch.from_numpy(before[learned]),
        targets=torch.from_numpy(labels[learned]),
        owner=torch.from_numpy(owner[learned]),
        sample_ids=list(row.sample_ids),
        questions=questions,
        features=features,
    )


def questions_of(questions: Sequence[Sequence[int]], source: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return what a tower that reads the question takes beside its pixels.

    Args:
        questions: M questions as ids of the tower's own tokenizer, at least one id each.
        source: M numbers, the view among the pixels that each question is about.

    Returns:
        "question": long [M, L], padded on the right; "mask": long [M, L], 1 on ids and 0 on padding; "source": long
        [M].
    """
    longest = max(map(len, questions))
    ids = torch.zeros(len(questions), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for line, question in enumerate(questions):
        ids[line, : len(question)] = torch.tensor(question)
        mask[line, : len(question)] = 1
    return {"question": ids, "mask": mask, "source": torch.tensor(source)}


def _flat(row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids, labels and the number of the owning sample (-1 in prefixes), int64 [N] each."""
    number = {sample_id: index for index, sample_id in enumerate(row.sample_ids)}
    ids, labels, owner = [], [], []
    for group in row.groups:
        ids.append(group.prefix)
        labels.append(np.full(len(group.prefix), IGNORE))
        owner.append(np.full(len(group.prefix), -1))
        for branch, sample_id in zip(group.branches, group.sample_ids, strict=True):
            ids.append(branch.ids)
            labels.append(branch.labels)
            owner.append(np.full(len(branch.ids), number[sample_id]))
    flat = [np.concatenate(parts).astype(np.int64) for parts in (ids, labels, owner)]
    return flat[0], flat[1], flat[2]


def _media(row: Row, ids: np.ndarray) -> tuple[dict[str, list[Media]], dict[str, torch.Tensor]]:
    """Return media and placeholder positions per tower, checked group by group."""
    media: dict[str, list[Media]] = {}
    places: dict[str, list[np.ndarray]] = {}
    start = 0
    for group in row.groups:
        own = ids[start : start + group.num_tokens]
        for tower in dict.fromkeys(medium.tower for medium in group.media):
            shown = [medium for medium in group.media if medium.tower == tower]
            found = np.flatnonzero(own == shown[0].token)
            expected = sum(medium.num_tokens for medium in shown)
            if len(found) != expected:
                raise ValueError(
                    f"samples {', '.join(dict.fromkeys(group.sample_ids))}: {len(found)} placeholder tokens of tower "
                    f"{tower!r}, but its {len(shown)} media need {expected}"
                )
            media.setdefault(tower, []).extend(shown)
            places.setdefault(tower, []).append(start + found)
        start += group.num_tokens
    return media, {tower: torch.from_numpy(np.concatenate(parts)) for tower, parts in places.items()}
