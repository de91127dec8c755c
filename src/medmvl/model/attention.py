"""One attention function for every LLM: packed rows with shared prefixes, and reading on from kept keys, exactly.

Registered with transformers under the name `medmvl`. How a row is laid out travels as the forward keyword `layout`: a
core `Layout` for a flat row (training), a `Keeping` for tokens that read on from kept keys (inference, see `kept.py`),
None for plain causal attention. No T x T mask is ever built: isolated segments of similar length are attended to in one
causal call, the branches of a prefix in another whose mask is [L, P + L]. Windows count positions, never indices.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from medmvl.core.layout import Layout, Segment

NAME = "medmvl"

# Segments share a call when padding them to the longest costs each at most this many tokens, or this share of it.
_PADDING_TOKENS = 16
_PADDING_SHARE = 0.25


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


class Keeping(ABC):
    """A layout that has the keys and values of what was read before, and keeps those of the tokens it reads."""

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, window: int | None, options: tuple) -> Tensor:
        """Return what the new tokens [B, H, Q, D] see, [B, Q, H, D]; called layer by layer, in the LLM's own order.

        `options` are the further arguments of the function `attend`.
        """


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


class Plan:
    """The calls that attention over one packed row takes, with their index tensors on one device.

    Args:
        layout: of the row.
        device: of the row.
        kept: how many of its segments, the first ones, were read before: they are prefixes, and not in the row.
    """

    @torch.inference_mode(False)
    def __init__(self, layout: Layout, device: torch.device, kept: int = 0) -> None:
        numbers = {(s.start, s.end): number for number, s in enumerate(layout.segments)}
        segments, before = layout.segments[kept:], layout.segments[kept - 1].end if kept else 0
        families: dict[int | None, list[Segment]] = {}
        for segment in segments:
            prefix = numbers[segment.prefix_start, segment.prefix_end] if segment.prefix_length else None
            families.setdefault(prefix, []).append(segment)
        self.lengths = [segment.length for segment in segments]
        self.blocks = [_Block(b, prefix, device) for prefix, members in families.items() for b in _buckets(members)]
        # Token of the row behind each padded token of the blocks laid end to end; and where each token went.
        self.tokens = torch.cat([block.tokens for block in self.blocks]).sub(before).to(device)
        places, first = torch.empty(layout.length - before, dtype=torch.long), 0
        for block in self.blocks:
            for line, segment in enumerate(block.segments):
                start = first + line * block.longest
                places[segment.start - before : segment.end - before] = torch.arange(start, start + segment.length)
            first += block.tokens.numel()
        self.places = places.to(device)


_plan = lru_cache(maxsize=32)(Plan)  # every layer asks for the same row's plan


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


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    layout: Layout | Keeping | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attend as `layout` says; the signature is that of transformers' attention interface.

    Args:
        query: [B, H, Q, D]; B is 1 under a `Layout`.
        key, value: [B, H_kv, K, D], H a multiple of H_kv.
        sliding_window: a query sees keys fewer than this many *positions* behind it.
        softcap: scores become `softcap * tanh(scores / softcap)` (Gemma 2).
        s_aux: [H] one more score per head that takes part in the softmax and carries no value (gpt-oss).

    Returns:
        [B, Q, H, D], and None for the attention weights, which are never built.

    Raises:
        ValueError: the layout does not fit the row, or the model asks for something else than causal attention.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None or position_bias is not None or not causal:
        raise ValueError(
            f"{type(module).__name__}: attention {NAME!r} is causal and takes its layout as `layout`, got a mask, a "
            "position bias or is_causal=False; load this model with attn_implementation='sdpa' or 'eager'"
        )
    options = (scaling, dropout, softcap, s_aux)
    if isinstance(layout, Keeping):
        return layout.attend(query, key, value, sliding_window, options), None
    if layout is None or len(layout.segments) == 1:
        out = attend(query, key, value, _plain_mask(query, key, sliding_window), *options)
    else:
        if (query.shape[0], query.shape[2], key.shape[2]) != (1, layout.length, layout.length):
            raise ValueError(
                f"a layout of {layout.length} tokens needs queries and keys of batch 1 and that length, "
                f"got queries {tuple(query.shape)} and keys {tuple(key.shape)}"
            )
        return attend_row(query, key, value, _plan(layout, query.device), sliding_window, options), None
    return out.transpose(1, 2).contiguous(), None


def attend_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    window: int | None,
    options: tuple,
    kept: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ()),
) -> Tensor:
    """Attend over one packed row, block by block.

    Args:
        query, key, value: [1, H, T, D].
        plan: of the row.
        window: as for `packed_attention`.
        options: further arguments of `attend`.
        kept: keys and values [1, H_kv, P, D] of each segment that was read before.

    Returns:
        [1, T, H, D].
    """
    arranged = [_Arrange.apply(x[0].transpose(0, 1), plan.tokens, plan.places) for x in (query, key, value)]
    sizes = [block.tokens.numel() for block in plan.blocks]
    prefixes = [(*known, *x.split(plan.lengths, dim=2)) for known, x in zip(kept, (key, value), strict=True)]
    outs = []
    for block, *tokens in zip(plan.blocks, *(x.split(sizes) for x in arranged), strict=True):
        q, k, v = map(block.split_off, tokens)
        if block.prefix is not None:
            k, v = (
                torch.cat([shared[block.prefix].expand(block.count, -1, -1, -1), own], dim=2)
                for shared, own in zip(prefixes, (k, v), strict=True)
            )
        out = attend(q, k, v, block.mask(window), *options)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs).index_select(0, plan.places)[None]


def _plain_mask(query: Tensor, key: Tensor, window: int | None) -> Tensor | None:
    """Mask of queries that are the last tokens of a causal row; None where SDPA's own causal rule says the same."""
    queries, keys = query.shape[2], key.shape[2]
    if queries == keys and (window is None or window >= keys):
        return None
    steps = torch.arange(keys, device=query.device)
    return Reach(steps[keys - queries :, None] - steps).mask(window)


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


def _no_mask(attention_mask: Tensor | None = None, **kwargs: object) -> None:
    """Build no mask: the layout says it all. A padded batch without a layout would be silently wrong: refused."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError(f"attention {NAME!r} takes padding through `layout`, not through an attention mask with zeros")


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
