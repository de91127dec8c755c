"""Inference: what was read is kept, once, and new tokens read on from it, however many branches share it.

`Reading` reads a flat row of runs of tokens, each from its start or behind something kept. `Writing` grows many answers
side by side, a token each at a time. Neither copies what answers share. Keys and values are kept here and in no cache
of transformers'; windows, softcap and sinks are those of `packed_attention`.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor

from medmvl.core.layout import Layout, Segment
from medmvl.model.attention import Keeping
from medmvl.model.backends import Options, Reach, Row, choose, weigh

_SPARE, _IDLE = 1.5, 4
"""Tables are made so many times as long as needed, and made anew when they are so many times as long."""


class Kept:
    """Keys and values of a run of tokens in every layer, and of all that was read before it.

    Attributes:
        layers: keys and values [H_kv, L, D] of the run, one pair for each time that an LLM attends.
        own: L, tokens of the run.
        behind: what was read before it, or None.
        length: tokens from the first one to the end of the run.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], own: int, behind: "Kept | None" = None) -> None:
        self.layers, self.own, self.behind = layers, own, behind
        self.length: int = own + (behind.length if behind else 0)

    def whole(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values [H_kv, length, D] of one layer, from the first token on."""
        if self.behind is None:
            return self.layers[layer]
        before, own = self.behind.whole(layer), self.layers[layer]
        return torch.cat([before[0], own[0]], dim=1), torch.cat([before[1], own[1]], dim=1)

    def compact(self) -> "Kept":
        """Return a copy of the run that does not keep the row alive in which it was read."""
        layers = [(keys.clone(), values.clone()) for keys, values in self.layers]
        return Kept(layers, self.own, self.behind)

    @property
    def token_bytes(self) -> float:
        """Memory that one token takes."""
        return sum(x.nbytes for pair in self.layers for x in pair) / self.own


class Reading(Keeping):
    """The layout of a flat row of runs, batch 1, none of which sees another.

    Args:
        lengths: tokens of each run, in the order of the row.
        behind: what each run is read behind, or None.
        device: of the row.
    """

    def __init__(self, lengths: Sequence[int], behind: Sequence[Kept | None], device: torch.device) -> None:
        self._lengths, self._behind = lengths, behind
        self.ends = [end - 1 for end in accumulate(lengths)]
        """Place of each run's last token in the row."""
        self._before = list(dict.fromkeys(kept for kept in behind if kept is not None))
        segments, cursor = [], 0
        for kept in self._before:
            segments.append(Segment(cursor, cursor + kept.length))
            cursor += kept.length
        prefixes = {kept: (s.start, s.end) for kept, s in zip(self._before, segments, strict=True)}
        for length, kept in zip(lengths, behind, strict=True):
            segments.append(Segment(cursor, cursor + length, *(prefixes[kept] if kept else (0, 0))))
            cursor += length
        self._runs = segments[len(self._before) :]
        self._layout, self._device = Layout(tuple(segments)), device
        self._rows: dict[type[Row], Row] = {}
        self._layers: list[tuple[Tensor, Tensor]] = []

    def positions(self) -> Iterator[int]:
        """Position id of every token of the row."""
        for run in self._runs:
            yield from range(run.prefix_length, run.prefix_length + run.length)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, window: int | None, options: Options) -> Tensor:
        """See `Keeping.attend`."""
        layer = len(self._layers)
        self._layers.append((key[0], value[0]))
        before = [kept.whole(layer) for kept in self._before]
        kept = [keys[None] for keys, _ in before], [values[None] for _, values in before]
        backend = choose(query, value, options)
        if backend not in self._rows:
            self._rows[backend] = backend(self._layout, self._device, len(self._before))
        return self._rows[backend].attend(query, key, value, window, options, kept)

    def kept(self) -> list[Kept]:
        """Return what the row left behind, run by run: views into it."""
        cut = [(keys.split(self._lengths, dim=1), values.split(self._lengths, dim=1)) for keys, values in self._layers]
        return [
            Kept([(keys[run], values[run]) for keys, values in cut], self._lengths[run], before)
            for run, before in enumerate(self._behind)
        ]


@dataclass(frozen=True)
class _Step:
    """What all layers need for one more token of every line.

    Attributes:
        shared: what several lines lie behind, and their numbers.
        longest: tokens of the longest of those.
        own: tokens of the longest line, the new one included.
        reach: distance [B, 1, 1, longest + own] of each key.
        rows, places: where in the tables the new keys go.
    """

    shared: list[tuple[Kept, Tensor]]
    longest: int
    own: int
    reach: Reach
    rows: Tensor
    places: Tensor


class Writing(Keeping):
    """The layout of lines that grow by one token at a time; batch B, one query each.

    Each line has a row of a table for its own keys, and may lie behind something kept that others lie behind as well:
    all their queries meet it in one product.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tables: list[tuple[Tensor, Tensor]] = []  # keys and values [rows, H_kv, room, D] of every layer
        self._lengths = torch.zeros(0, dtype=torch.long)  # [B] own tokens
        self._behind: list[Kept | None] = []
        self._step: _Step | None = None
        self._layer = 0  # that attends next

    def __len__(self) -> int:
        return len(self._behind)

    def add(self, read: Sequence[Kept]) -> None:
        """Add a line for each run that was read, to be written on."""
        first = len(self)
        self._lengths = torch.cat([self._lengths, torch.tensor([run.own for run in read], dtype=torch.long)])
        self._behind += [run.behind for run in read]
        for layer, like in enumerate(read[0].layers):
            tables = self._fit(layer, like)
            for row, run in enumerate(read, first):
                for table, own in zip(tables, run.layers[layer], strict=True):
                    table[row, :, : run.own] = own

    def drop(self, lines: Collection[int]) -> list[int]:
        """Forget lines; return the former number of each that stays, in their new order."""
        left = len(self) - len(lines)
        # The last ones take the places of those that go: few rows move.
        holes = [line for line in lines if line < left]
        movers = [line for line in range(left, len(self)) if line not in lines]
        if holes:
            into, moved = (torch.tensor(x, device=self._device) for x in (holes, movers))
            for table in chain(*self._tables):
                table[into] = table[moved]
        order = list(range(left))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        self._lengths, self._behind = self._lengths[order], [self._behind[line] for line in order]
        if not order:
            self._tables.clear()
        return order

    def step(self) -> Tensor:
        """Make room for one more token of every line; return their position ids [B, 1]."""
        lines: dict[Kept, list[int]] = {}
        for line, kept in enumerate(self._behind):
            if kept is not None:
                lines.setdefault(kept, []).append(line)
        longest, own = max((kept.length for kept in lines), default=0), int(self._lengths.max()) + 1
        before = torch.tensor([kept.length if kept else 0 for kept in self._behind])[:, None]
        new = self._lengths[:, None]
        steps = torch.arange(longest)
        distance = torch.cat([torch.where(steps < before, before + new - steps, -1), new - torch.arange(own)], dim=1)
        self._step = _Step(
            [(kept, torch.tensor(own, device=self._device)) for kept, own in lines.items()],
            longest,
            own,
            Reach(distance[:, None, None].to(self._device)),
            torch.arange(len(self), device=self._device),
            self._lengths.to(self._device),
        )
        self._lengths, self._layer = self._lengths + 1, 0
        return (before + new).to(self._device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, window: int | None, options: Options) -> Tensor:
        """See `Keeping.attend`."""
        step = self._step
        if step is None:
            raise RuntimeError("step() makes room for the tokens that are to attend")
        layer, self._layer = self._layer, self._layer + 1
        scaling, _, softcap, sinks = options
        lines, heads, _, width = query.shape
        tables = self._fit(layer, (key[0], value[0]))
        for table, new in zip(tables, (key, value), strict=True):
            table[step.rows, :, step.places] = new[:, :, 0]
        keys, values = (table[:lines, :, : step.own] for table in tables)
        # Heads that share keys become queries side by side.
        folded = query.reshape(lines, keys.shape[1], -1, width) * (width**-0.5 if scaling is None else scaling)
        scores = folded.new_empty(*folded.shape[:3], step.longest + step.own)
        scores[..., step.longest :] = folded @ keys.transpose(-1, -2)
        for kept, own in step.shared:
            scores[own, ..., : kept.length] = _meet(folded[own], kept.whole(layer)[0].transpose(-1, -2))
        weights = weigh(scores.view(lines, heads, 1, -1), step.reach.mask(window), softcap, sinks).reshape(scores.shape)
        seen = weights[..., step.longest :] @ values
        for kept, own in step.shared:
            seen[own] += _meet(weights[own, ..., : kept.length], kept.whole(layer)[1])
        return seen.reshape(lines, 1, heads, -1)

    def _fit(self, layer: int, like: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the tables of one layer, large enough for all lines, and made anew where most of them lies idle."""
        rows, room = len(self), int(self._lengths.max())
        had = self._tables[layer] if layer < len(self._tables) else None
        if had is None or not (rows <= had[0].shape[0] and room <= had[0].shape[2] <= _IDLE * room):
            made = [x.new_zeros(rows, x.shape[0], int(_SPARE * room), x.shape[2]) for x in like]  # 0 x NaN is NaN
            for old, new in zip(had or (), made, strict=False):
                both = min(rows, old.shape[0]), min(old.shape[2], new.shape[2])
                new[: both[0], :, : both[1]] = old[: both[0], :, : both[1]]
            self._tables[layer : layer + 1] = [(made[0], made[1])]
        return self._tables[layer]


def _meet(lines: Tensor, shared: Tensor) -> Tensor:
    """Multiply [n, H_kv, r, A] of lines with [H_kv, A, B] that they share, into [n, H_kv, r, B]."""
    count, heads, repeats, _ = lines.shape
    met = lines.transpose(0, 1).reshape(heads, count * repeats, -1) @ shared
    return met.view(heads, count, repeats, -1).transpose(0, 1)
