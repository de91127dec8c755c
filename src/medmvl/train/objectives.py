"""What a stage learns: the next token of a chat, attributes of pictures, or which text belongs to which picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmvl.data.mixture import Position, Step
from medmvl.processing.collate import Batch
from medmvl.train.feed import ModelBatch, Prepared
from medmvl.train.images import NONE, Picture, Seen, box_target

BOX = "box"


class Order(Protocol):
    """Which samples come when; `Mixture` and `Shuffled` are."""

    fingerprint: str

    def __len__(self) -> int:
        """Return the samples of an epoch."""

    def steps(self, global_batch: int, start: Position) -> Iterator[Step]:
        """Yield steps without end."""


class Preparer(Protocol):
    """Turns a planned step into the batches of one rank."""

    def __call__(self, step: Step) -> Prepared:
        """Prepare one step."""

    def filler(self) -> ModelBatch:
        """Return a batch for a micro-step in which a rank has nothing to learn."""


class Output(NamedTuple):
    """What an objective's module returns; `VLMOutput` has the first two as well.

    Attributes:
        loss: scalar, the sum of all terms.
        token_losses: [B, K], 0 where there is nothing to learn.
        hits: [B, K], 1 right, 0 wrong, -1 nothing to judge.
    """

    loss: Tensor
    token_losses: Tensor
    hits: Tensor


Scores = dict[str, tuple[float, float]]
"""Name -> (right, judged)."""


@dataclass
class Objective:
    """One stage's module, its data, and how to read what the module returns.

    Attributes:
        module: trained; its forward takes a batch's `model_inputs` and returns a loss that is a plain sum.
        order, preparer: the data.
        steps: optimizer steps.
        plan: what is shown, for people.
        held_out, held_out_preparer: steps of validation data (made anew by each call), and what prepares them.
        score_names: names of the columns of `Output.hits`.
    """

    module: nn.Module
    order: Order
    preparer: Preparer
    steps: int
    plan: str
    held_out: Any = None
    held_out_preparer: Preparer | None = None
    score_names: Sequence[str] = ()

    def culprits(self, losses: Tensor, batch: ModelBatch) -> list[str]:
        """Return the samples whose loss is not finite; all of the batch when the sum alone is."""
        bad = (~torch.isfinite(losses.detach())).cpu()
        if bad.ndim == 1 and isinstance(batch, Batch):
            rows = batch.owner.cpu()[bad].unique().tolist()
        else:
            rows = bad.reshape(len(bad), -1).any(dim=1).nonzero().flatten().tolist()
        return [batch.sample_ids[row] for row in rows] or list(batch.sample_ids)

    def scores(self, output: Any) -> Scores:
        """Return how many answers were right, per name."""
        if not self.score_names:
            return {}
        hits = output.hits.detach()
        right, judged = (hits == 1).sum(0).tolist(), (hits >= 0).sum(0).tolist()
        return {name: (right[i], judged[i]) for i, name in enumerate(self.score_names)}


class Heads(nn.Module):
    """An encoder with one small classifier per attribute, and one that points at the box.

    Each has a learned query that attends to the tokens; beside what it finds stands the tokens' mean.

    Args:
        encoder: pixels [B, ...] to tokens [B, N, width].
        width: of the tokens.
        classes: attribute -> its values.
        box: whether to learn boxes as well.
    """

    def __init__(self, encoder: nn.Module, width: int, classes: Mapping[str, Sequence[str]], box: bool) -> None:
        super().__init__()
        self.encoder = encoder
        sizes = [len(values) for values in classes.values()] + [4] * box
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(len(sizes), width) / math.sqrt(width))
        self.outputs = nn.ModuleList(nn.Linear(2 * width, size) for size in sizes)
        self.with_box = box

    def forward(self, pixels: Tensor, labels: Tensor, boxes: Tensor) -> Output:
        """Compute the loss.

        Args:
            pixels: [B, C, ...].
            labels: long [B, A], -1 where an attribute is not known.
            boxes: [B, 4] corners as shares of the sides, NaN where there is none.
        """
        answers = self._answers(self.norm(self.encoder(pixels)))
        losses, hits = [], []
        for logits, wanted in zip(answers, labels.unbind(dim=1), strict=False):
            losses.append(F.cross_entropy(logits, wanted, ignore_index=-1, reduction="none"))
            hits.append(torch.where(wanted < 0, -1, (logits.argmax(-1) == wanted).long()))
        if self.with_box:
            known = ~boxes.isnan().any(dim=1)
            corners = answers[-1].sigmoid()
            away = (corners - boxes.nan_to_num()).abs().sum(dim=1)
            losses.append(torch.where(known, away, 0.0))
            inside = _overlap(corners.detach(), boxes.nan_to_num()) >= 0.5
            hits.append(torch.where(known, inside.long(), -1))
        table = torch.stack(losses, dim=1)
        return Output(table.sum(), table, torch.stack(hits, dim=1))

    def _answers(self, tokens: Tensor) -> list[Tensor]:
        """Return fp32 [B, outputs] of every head, given tokens [B, N, width]."""
        weights = (tokens @ self.queries.T / math.sqrt(tokens.shape[-1])).softmax(dim=1)
        attended = weights.transpose(1, 2) @ tokens
        seen = torch.cat([attended, tokens.mean(dim=1, keepdim=True).expand_as(attended)], dim=-1)
        return [output(seen[:, index]).float() for index, output in enumerate(self.outputs)]


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union [B] of corner boxes [B, 4]."""
    low, high = torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:])
    common = (high - low).clamp(min=0).prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(dim=1) for box in (first, second)]
    return common / (areas[0] + areas[1] - common).clamp(min=1e-9)


def find_classes(pictures: Sequence[Picture]) -> dict[str, list[str]]:
    """Return attribute -> its values in alphabetical order, those that apply to two kinds of pictures at least.

    Raises:
        ValueError: no attribute tells pictures apart.
    """
    values: dict[str, set[str]] = {}
    for picture in pictures:
        for name, value in picture.attributes.items():
            if value != NONE:
                values.setdefault(name, set()).add(value)
    classes = {name: sorted(known) for name, known in sorted(values.items()) if len(known) > 1}
    if not classes:
        raise ValueError(
            "objective heads: no attribute in meta.attributes has two different values; "
            f"attributes found in {len(pictures)} pictures: {', '.join(sorted(values)) or 'none'}"
        )
    return classes


@dataclass
class HeadTargets:
    """Attribute values as class numbers, and boxes.

    Attributes:
        classes: attribute -> its values.
        box: whether boxes are learned.
        spec: of the encoder.
    """

    classes: Mapping[str, Sequence[str]]
    box: bool
    spec: Any

    def __call__(self, seen: Sequence[Seen], epoch: int) -> tuple[dict[str, Tensor], int]:
        """Return labels long [B, A], boxes [B, 4], and how many of them there are."""
        numbers = [{value: number for number, value in enumerate(values)} for values in self.classes.values()]
        labels = torch.tensor(
            [
                [
                    known.get(picture.attributes.get(name, NONE), -1)
                    for name, known in zip(self.classes, numbers, strict=True)
                ]
                for picture, _ in seen
            ]
        )
        boxes = torch.tensor([box_target(picture, view, self.spec) for picture, view in seen], dtype=torch.float32)
        if not self.box:
            boxes = torch.full_like(boxes, float("nan"))
        count = int((labels >= 0).sum()) + int((~boxes.isnan().any(dim=1)).sum())
        return {"labels": labels, "boxes": boxes}, count


class Contrast(nn.Module):
    """An encoder and a bag of the LLM's word embeddings, brought into one space (SigLIP's sigmoid loss).

    A text that several pictures of the batch share counts as right for each of them.

    Args:
        encoder: pixels [B, ...] to tokens [B, N, width].
        width: of the tokens.
        words: the LLM's embedding table.
        space: channels of the common space.
    """

    def __init__(self, encoder: nn.Module, width: int, words: nn.Embedding, space: int = 256) -> None:
        super().__init__()
        self.encoder, self.words = encoder, words
        self.see = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, space))
        self.read = nn.Sequential(nn.LayerNorm(words.embedding_dim), nn.Linear(words.embedding_dim, space))
        # start values of the SigLIP paper (arXiv 2303.15343, section 3.2)
        self.log_scale = nn.Parameter(torch.tensor([math.log(10.0)]))
        self.bias = nn.Parameter(torch.tensor([-10.0]))

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor, same: Tensor) -> Output:
        """Compute the loss of all pairs in the batch.

        Args:
            pixels: [B, C, ...].
            ids: long [B, L] tokens of the texts.
            mask: [B, L], 1 for tokens, 0 for padding.
            same: bool [B, B], whether text j is right for picture i.
        """
        seen = F.normalize(self.see(self.encoder(pixels).mean(dim=1)).float(), dim=-1)
        words = self.words(ids) * mask[..., None]
        read = F.normalize(self.read(words.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)).float(), dim=-1)
        logits = seen @ read.T * self.log_scale.exp() + self.bias
        losses = F.softplus(torch.where(same, -logits, logits)).sum(dim=1, keepdim=True)
        hits = same[torch.arange(len(same), device=same.device), logits.argmax(dim=1)].long()[:, None]
        return Output(losses.sum(), losses, hits)


@dataclass
class ContrastTargets:
    """One text per picture, as tokens; another one of its texts each epoch.

    Attributes:
        tokenizer: of the LLM.
        max_tokens: longer texts are cut.
    """

    tokenizer: Any
    max_tokens: int

    def __call__(self, seen: Sequence[Seen], epoch: int) -> tuple[dict[str, Tensor], int]:
        """Return ids and mask [B, L], same [B, B], and the number of pictures."""
        texts = [picture.texts[epoch % len(picture.texts)] for picture, _ in seen]
        tokens = [self.tokenizer(text, add_special_tokens=False)["input_ids"][: self.max_tokens] for text in texts]
        length = max(map(len, tokens))
        ids = torch.tensor([one + [0] * (length - len(one)) for one in tokens])
        mask = torch.tensor([[1.0] * len(one) + [0.0] * (length - len(one)) for one in tokens])
        same = torch.tensor([[first == second for second in texts] for first in texts])
        return {"ids": ids, "mask": mask, "same": same}, len(texts)
