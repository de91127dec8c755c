"""How attention over a packed row is computed: one rule, three back ends, chosen by the row's tensors and options.

`Blocked` is PyTorch's SDPA and runs everywhere: isolated segments of similar length are attended to in one causal call,
the branches of a prefix in another whose mask is [L, P + L]. `Varlen` is flash attention over runs of other lengths, in
half precision on a GPU. `Masked` is flex attention with a block mask, on a GPU for what flash attention cannot do. None
builds a T x T mask, windows count positions, never indices, and tests hold each to the others.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medmvl.core.layout import Layout, Segment

# Segments share a call when padding them to the longest costs each at most this many tokens, or this share of it.
_PADDING_TOKENS = 16
_PADDING_SHARE = 0.25
_BLOCK = 128
"""Queries, and keys, of one block of flex attention."""


class Options(NamedTuple):
    """What an LLM asks of attention beside its tensors and window; as for `packed_attention`."""

    scaling: float | None = None
    dropout: float = 0.0
    softcap: float | None = None
    sinks: Tensor | None = None


Kept = tuple[Sequence[Tensor], Sequence[Tensor]]
"""Keys and values [1, H_kv, P, D] of each segment that was read before."""


class Reach:
    """Which keys a query sees, from the number of positions each key lies behind it.

    Args:
        distance: integers that broadcast to [batch, heads, queries, keys]; a negative one is never seen.
    """

    def __init__(self, distance: Tensor) -> None:
        self.distance = distance
        self._masks: dict[int | None, Tensor] = {}

    @torch.inference_mode(False)  # masks and plans outlive the call that made them, and may be trained with later
    def mask(self, window: int | None) -> Tensor:
        """Return the boolean mask, True where seen, under a sliding window of so many positions (None: no window)."""
        if window not in self._masks:
            seen = self.distance >= 0
            self._masks[window] = seen if window is None else seen & (self.distance < window)
        return self._masks[window]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Softmax attention of [B, H, Q, D] over [B, H_kv, K, D] under `mask` (None: causal, Q == K)."""
    lines, heads, queries, width = query.shape
    shared, repeats = key.shape[1], heads // key.shape[1]
    plain = softcap is None and sinks is None
    if mask is None and plain:
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scaling, is_causal=queries > 1, enable_gqa=repeats > 1
        )
    if mask is None:
        mask = torch.ones(queries, key.shape[2], dtype=torch.bool, device=query.device).tril()
    # Heads that share keys become queries one after the other, which spares copying the keys for each of them.
    folded = query.reshape(lines, shared, repeats * queries, width)
    if plain:
        tiled = mask.repeat(*[1] * (mask.ndim - 2), repeats, 1)
        out = F.scaled_dot_product_attention(folded, key, value, attn_mask=tiled, dropout_p=dropout, scale=scaling)
    else:
        scores = folded @ key.transpose(-1, -2) * (width**-0.5 if scaling is None else scaling)
        weights = weigh(scores.view(lines, heads, queries, -1), mask, softcap, sinks).view(scores.shape)
        out = F.dropout(weights, dropout) @ value
    return out.reshape(lines, heads, queries, -1)


def weigh(scores: Tensor, mask: Tensor, softcap: float | None, sinks: Tensor | None) -> Tensor:
    """Turn scaled scores [B, H, Q, K] into the weights of the values; arguments as for `packed_attention`."""
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    masked = scores.float().masked_fill(~mask, -torch.inf)
    if sinks is not None:
        sink = sinks.float().view(1, -1, 1, 1).expand(*masked.shape[:3], 1)
        masked = torch.cat([masked, sink], dim=-1)
    return torch.softmax(masked, dim=-1)[..., : scores.shape[-1]].to(scores.dtype)


class Row(ABC):
    """Attention over one packed row, on one device.

    Args:
        layout: of the row.
        device: of the row.
        kept: how many of its segments, the first ones, were read before: they are prefixes, and not in the row.
    """

    def __init__(self, layout: Layout, device: torch.device, kept: int = 0) -> None:
        self.layout = layout
        self.segments = layout.segments[kept:]
        self.before = layout.segments[kept - 1].end if kept else 0
        """Tokens that were read before."""
        numbers = {(s.start, s.end): number for number, s in enumerate(layout.segments)}
        self.prefixes = [numbers.get((s.prefix_start, s.prefix_end)) for s in layout.segments]
        """Of every segment of the layout, the number of its prefix among them; None for isolated ones."""

    @staticmethod
    @abstractmethod
    def takes(query: Tensor, value: Tensor, options: Options) -> bool:
        """Whether this back end can attend, and is worth its start-up, for tensors like these."""

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None, options: Options, kept: Kept = ((), ())
    ) -> Tensor:
        """Attend over the row.

        Args:
            query, key, value: [1, H or H_kv, T, D].
            window: as for `packed_attention`.
            options: of the LLM.
            kept: of the segments that were read before.

        Returns:
            [1, T, H, D].
        """


class Blocked(Row):
    """Calls of SDPA over segments of similar length, and over the branches of a prefix."""

    @torch.inference_mode(False)
    def __init__(self, layout: Layout, device: torch.device, kept: int = 0) -> None:
        super().__init__(layout, device, kept)
        families: dict[int | None, list[Segment]] = {}
        for segment, prefix in zip(self.segments, self.prefixes[kept:], strict=True):
            families.setdefault(prefix, []).append(segment)
        self._lengths = [segment.length for segment in self.segments]
        self._blocks = [_Block(b, prefix, device) for prefix, members in families.items() for b in _buckets(members)]
        # Token of the row behind each padded token of the blocks laid end to end; and where each token went.
        self._tokens = torch.cat([block.tokens for block in self._blocks]).sub(self.before).to(device)
        places, first = torch.empty(layout.length - self.before, dtype=torch.long), 0
        for block in self._blocks:
            for line, segment in enumerate(block.segments):
                start = first + line * block.longest
                places[segment.start - self.before : segment.end - self.before] = torch.arange(
                    start, start + segment.length
                )
            first += block.tokens.numel()
        self._places = places.to(device)

    @staticmethod
    def takes(query: Tensor, value: Tensor, options: Options) -> bool:
        """See `Row.takes`: always."""
        return True

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None, options: Options, kept: Kept = ((), ())
    ) -> Tensor:
        """See `Row.attend`."""
        arranged = [_Arrange.apply(x[0].transpose(0, 1), self._tokens, self._places) for x in (query, key, value)]
        sizes = [block.tokens.numel() for block in self._blocks]
        prefixes = [(*known, *x.split(self._lengths, dim=2)) for known, x in zip(kept, (key, value), strict=True)]
        outs = []
        for block, *tokens in zip(self._blocks, *(x.split(sizes) for x in arranged), strict=True):
            q, k, v = map(block.split_off, tokens)
            if block.prefix is not None:
                k, v = (
                    torch.cat([shared[block.prefix].expand(block.count, -1, -1, -1), own], dim=2)
                    for shared, own in zip(prefixes, (k, v), strict=True)
                )
            out = attend(q, k, v, block.mask(window), *options)
            outs.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(outs).index_select(0, self._places)[None]


class Varlen(Row):
    """One call of flash attention: every segment is a run of queries, its keys are its prefix's and its own.

    Causal runs are aligned at their ends, so a query sees the whole prefix and its own segment up to itself. Keys of a
    prefix are copied for each of its branches, which costs memory for keys but no work.
    """

    @torch.inference_mode(False)
    def __init__(self, layout: Layout, device: torch.device, kept: int = 0) -> None:
        super().__init__(layout, device, kept)
        runs = [np.r_[s.prefix_start : s.prefix_end, s.start : s.end] for s in self.segments]
        self._keys = torch.from_numpy(np.concatenate(runs)).to(device)
        lengths = [segment.length for segment in self.segments], [len(run) for run in runs]
        self._cuts = [torch.tensor([0, *accumulate(x)], dtype=torch.int32, device=device) for x in lengths]
        self._longest = [max(x) for x in lengths]

    @staticmethod
    def takes(query: Tensor, value: Tensor, options: Options) -> bool:
        """See `Row.takes`: half precision on GPUs from Ampere on, without dropout, softcap and sinks."""
        if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
            return False
        width, plain = query.shape[-1], options.softcap is None and options.sinks is None and not options.dropout
        fits = (
            width % 8 == 0
            and width <= 256
            and value.shape[-1] == width
            and torch.cuda.get_device_capability(query.device) >= (8, 0)
        )
        return plain and fits and varlen_attention() is not None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None, options: Options, kept: Kept = ((), ())
    ) -> Tensor:
        """See `Row.attend`."""
        run = varlen_attention()
        if run is None:
            raise RuntimeError(f"torch {torch.__version__} has no flash attention over runs of other lengths")
        keys, values = (
            _Repeat.apply(torch.cat([*known, x], dim=2)[0].transpose(0, 1), self._keys)
            for known, x in zip(kept, (key, value), strict=True)
        )
        out = run(
            query[0].transpose(0, 1).contiguous(),
            keys,
            values,
            *self._cuts,
            *self._longest,
            scale=options.scaling,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out[None]


class _Repeat(torch.autograd.Function):
    """`x[tokens]` over the first dimension; what comes back for a token from its many copies is added up in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.count = len(x)
        return x.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (tokens,) = ctx.saved_tensors
        wide = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.new_zeros(ctx.count, *gradient.shape[1:], dtype=wide)
        return total.index_add_(0, tokens, gradient.to(wide)).to(gradient.dtype), None


@cache
def varlen_attention() -> Callable[..., Tensor] | None:
    """Return torch's flash attention over runs of other lengths; None if this torch has none with shared heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"window_size", "enable_gqa"} <= known.keys() else None


class Masked(Row):
    """Flex attention: a rule on pairs of tokens, and a map of the blocks in which any pair passes it."""

    @torch.inference_mode(False)
    def __init__(self, layout: Layout, device: torch.device, kept: int = 0) -> None:
        super().__init__(layout, device, kept)
        own = np.repeat(np.arange(len(layout.segments)), [s.length for s in layout.segments])
        prefixes = [-1 if prefix is None else prefix for prefix in self.prefixes]
        self._own, self._prefix, self._positions = (
            torch.from_numpy(x).to(device)
            for x in (own, np.array(prefixes)[own], np.fromiter(layout.positions(), np.int64, layout.length))
        )
        self._masks: dict[int | None, Any] = {}

    @staticmethod
    def takes(query: Tensor, value: Tensor, options: Options) -> bool:
        """See `Row.takes`: GPUs with Triton, without dropout and sinks."""
        width, plain = query.shape[-1], options.sinks is None and not options.dropout
        if not (plain and query.is_cuda and width >= 16 and value.shape[-1] == width):
            return False
        return torch.cuda.get_device_capability(query.device) >= (7, 0) and _has_triton()

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None, options: Options, kept: Kept = ((), ())
    ) -> Tensor:
        """See `Row.attend`."""
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        keys, values = (torch.cat([*known, x], dim=2) for known, x in zip(kept, (key, value), strict=True))
        softcap = options.softcap

        def capped(score: Tensor, *_: Tensor) -> Tensor:
            return softcap * torch.tanh(score / softcap)

        out = _flex_attention(query.is_cuda)(
            query,
            keys,
            values,
            score_mod=None if softcap is None else capped,
            block_mask=self._masks[window],
            scale=options.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.transpose(1, 2)

    @torch.inference_mode(False)
    def _mask(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import BlockMask

        own, prefix, positions, before = self._own, self._prefix, self._positions, self.before

        def sees(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
            query = query + before
            near = (own[key] == own[query]) | (own[key] == prefix[query])
            behind = positions[query] - positions[key]
            return near & (behind >= 0) if window is None else near & (behind >= 0) & (behind < window)

        length = self.layout.length
        blocks = np.zeros((-(-(length - before) // _BLOCK), -(-length // _BLOCK)), bool)
        for segment in self.segments:
            for row in range((segment.start - before) // _BLOCK, (segment.end - 1 - before) // _BLOCK + 1):
                last = min(segment.end, (row + 1) * _BLOCK + before) - 1
                blocks[row, segment.start // _BLOCK : last // _BLOCK + 1] = True
                if segment.prefix_length:
                    blocks[row, segment.prefix_start // _BLOCK : (segment.prefix_end - 1) // _BLOCK + 1] = True
        counts, order = blocks.sum(1, dtype=np.int32), np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
        device = own.device
        return BlockMask.from_kv_blocks(
            torch.from_numpy(counts)[None, None].to(device),
            torch.from_numpy(order)[None, None].to(device),
            BLOCK_SIZE=_BLOCK,
            mask_mod=sees,
            seq_lengths=(length - before, length),
        )


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _flex_attention(fused: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if fused else flex_attention


BACKENDS: dict[str, type[Row]] = {"flash": Varlen, "flex": Masked, "sdpa": Blocked}
"""Back ends by name, the first that takes a row's queries is chosen."""


def choose(query: Tensor, value: Tensor, options: Options) -> type[Row]:
    """Return the back end for a packed row with tensors like these."""
    return next(row for row in BACKENDS.values() if row.takes(query, value, options))


class _Block:
    """Segments of one row that are attended to in one call, padded to the longest by repeating their last token.

    What a padded query computes is dropped, and no real query sees a padded key, for it lies ahead of it.
    """

    def __init__(self, segments: Sequence[Segment], prefix: int | None, device: torch.device) -> None:
        self.segments = segments
        self.prefix = prefix  # number of the segment whose keys these branches share
        self.count, self.longest = len(segments), max(segment.length for segment in segments)
        self.prefix_length = segments[0].prefix_length
        steps = torch.arange(self.longest)
        self.tokens = torch.stack([(s.start + steps).clamp(max=s.end - 1) for s in segments]).flatten()
        keys = torch.arange(self.prefix_length + self.longest)
        self._reach = Reach((self.prefix_length + steps[:, None] - keys).to(device))

    def mask(self, window: int | None) -> Tensor | None:
        """Return the mask [L, P + L], or None where plain causal attention says the same."""
        if self.prefix is None and (window is None or window >= self.longest):
            return None
        return self._reach.mask(window)

    def split_off(self, x: Tensor) -> Tensor:
        """View this block's tokens [n * L, heads, width] as [n, heads, L, width]."""
        return x.view(self.count, self.longest, *x.shape[1:]).transpose(1, 2)


def _buckets(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Split segments into lists of similar length, the longest first."""
    buckets: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda s: -s.length):
        longest = buckets[-1][0].length if buckets else 0
        if buckets and longest - segment.length <= max(_PADDING_TOKENS, _PADDING_SHARE * longest):
            buckets[-1].append(segment)
        else:
            buckets.append([segment])
    return buckets


class _Arrange(torch.autograd.Function):
    """`x[tokens]` over the first dimension, with a gather for a gradient: four times faster than adding up.

    Exact because a token has one place that counts; the gradients of its padding copies are zero.
    """

    @staticmethod
    def forward(ctx, x: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, tokens)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradient.index_select(0, places), None, None
