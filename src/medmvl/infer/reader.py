"""Reading prompts: what several share once, and never more at a time than memory has room for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from medmvl.core.schema import SampleError
from medmvl.infer.queue import Asked, Beginning, Member, Queue
from medmvl.model.kept import Kept, Reading
from medmvl.model.vlm import VLM
from medmvl.processing.collate import collate
from medmvl.processing.pack import Row, pack

ROW_TOKENS = 2048
"""Tokens that are read in one forward; a longer prompt has one of its own."""

_MEMORY = 2 << 30
"""Bytes for keys and values, on devices that do not tell how much they have free."""


_Item = TypeVar("_Item")


@dataclass(eq=False)
class Read:
    """A prompt that was read.

    Attributes:
        number: place in what was asked.
        id: of its sample.
        kept: keys and values, behind those it shares with others.
        logits: [vocabulary] of the token that follows.
        most: own tokens that it may come to.
    """

    number: int
    id: str
    kept: Kept
    logits: Tensor
    most: int


class Reader:
    """Reads prompts in an order that suits, as many at a time as there is room for.

    Args:
        model: the model; its LLM must be packable.
        asked: prompts, each next to those about the same media if possible.
        batch_size: most prompts that are worked on at the same time.
        memory: bytes for keys and values; None: half of what the device has free.
    """

    def __init__(self, model: VLM, asked: Iterable[Asked], batch_size: int, memory: int | None = None) -> None:
        self._model, self.device = model, model.llm.get_input_embeddings().weight.device
        self._batch_size = batch_size
        self._memory = _free(self.device) if memory is None else memory
        self._room: float | None = None  # tokens that there is memory for; known when something was read
        self._shared: WeakSet[Kept] = WeakSet()  # beginnings that anyone still goes on from
        self._queue = Queue(asked)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.close()

    @property
    def waiting(self) -> bool:
        """Whether there is more to read, or to tell of."""
        return bool(self._queue)

    def read(self, busy: int = 0, most: int = 0) -> tuple[list[Read], list[tuple[int, SampleError]]]:
        """Read prompts that wait, as many as there is room for, at least one if nothing is in work.

        Args:
            busy: prompts in work.
            most: own tokens that the longest of them may come to.

        Returns:
            prompts that were read, and (number, what is wrong) of those that cannot be.
        """
        held = sum(kept.length for kept in self._shared)
        taken = self._queue.take(self._batch_size - busy, busy, most, held, self._room)
        self._begin(list(dict.fromkeys(member.beginning for member in taken if member.beginning.kept is None)))
        failed = [(member.number, member.beginning.error) for member in taken if member.beginning.error is not None]
        failed, self._queue.failed = failed + self._queue.failed, []
        fine = [member for member in taken if member.beginning.error is None]
        whole = [_whole(member) for member in fine if not member.beginning.shared]
        return whole + self._go_on([member for member in fine if member.beginning.shared]), failed

    def _begin(self, beginnings: Sequence[Beginning]) -> None:
        """Read beginnings with their media, in rows."""
        by_head = {beginning.head: beginning for beginning in beginnings if beginning.head is not None}
        longest = max((head.num_tokens for head in by_head), default=0)
        rows = [[by_head[head] for head in row.groups] for row in pack(list(by_head), max(ROW_TOKENS, longest))]
        for place, row in enumerate(rows):
            self._queue.fetch(beginning for later in rows[place:] for beginning in later)
            if fine := [beginning for beginning in row if self._queue.fetched(beginning)]:
                self._begin_row(fine)

    def _begin_row(self, beginnings: Sequence[Beginning]) -> None:
        heads = [beginning.head for beginning in beginnings if beginning.head is not None]
        batch = collate(Row(tuple(heads))).to(self.device)
        embeddings = self._model.embed(batch.ids, batch.pixels, batch.media_positions, batch.questions)
        reading = Reading([head.num_tokens for head in heads], [None] * len(heads), self.device)
        whole = [number for number, beginning in enumerate(beginnings) if not beginning.shared]
        logits = forward(self._model, embeddings, reading, [reading.ends[number] for number in whole])
        for number, one in zip(whole, logits, strict=True):
            beginnings[number].logits = one
        for beginning, kept in zip(beginnings, reading.kept(), strict=True):
            beginning.head, beginning.views, beginning.kept = None, [], kept.compact()  # lets go of the pixels
            if beginning.shared:
                self._shared.add(beginning.kept)
        self._room = self._room or self._memory / kept.token_bytes

    def _go_on(self, members: Sequence[Member]) -> list[Read]:
        """Read what is each prompt's own, in rows, behind what it shares."""
        found = []
        for row in rows_of(members, [len(member.ids) for member in members], ROW_TOKENS):
            ids = torch.from_numpy(np.concatenate([member.ids for member in row]).astype(np.int64))[None]
            embeddings = self._model.embed(ids.to(self.device), {}, {})
            reading = Reading([len(m.ids) for m in row], [m.beginning.kept for m in row], self.device)
            logits = forward(self._model, embeddings, reading, reading.ends)
            for member, kept, following in zip(row, reading.kept(), logits, strict=True):
                found.append(Read(member.number, member.id, kept, following, member.most))
        return found


def _whole(member: Member) -> Read:
    """Return a prompt that was read as its own beginning."""
    kept, logits = member.beginning.kept, member.beginning.logits
    if kept is None or logits is None:
        raise RuntimeError(f"prompt {member.number} ({member.id!r}) was not read")
    return Read(member.number, member.id, kept, logits, member.most)


def forward(model: VLM, embeddings: Tensor, reading: Reading, at: Sequence[int]) -> Tensor:
    """Read a row [1, T, width]; return the logits [len(at), vocabulary] behind its tokens `at`."""
    device = embeddings.device
    output = model.llm(
        inputs_embeds=embeddings,
        position_ids=torch.tensor([list(reading.positions())], device=device),
        layout=reading,
        logits_to_keep=torch.tensor(at, dtype=torch.long, device=device),
        use_cache=False,
    )
    return output.logits[0]


def rows_of(items: Sequence[_Item], lengths: Sequence[int], limit: int) -> Iterator[list[_Item]]:
    """Yield neighbours whose lengths add up to at most `limit`; one that is longer comes alone."""
    row: list[_Item] = []
    total = 0
    for item, length in zip(items, lengths, strict=True):
        if row and total + length > limit:
            yield row
            row, total = [], 0
        row.append(item)
        total += length
    if row:
        yield row


def _free(device: torch.device) -> int:
    """Return how many bytes keys and values may take."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _MEMORY
