"""One attention function for every LLM: packed rows with shared prefixes, and reading on from kept keys, exactly.

Registered with transformers under the name `medmvl`. How a row is laid out travels as the forward keyword `layout`: a
core `Layout` for a flat row (training), a `Keeping` for tokens that read on from kept keys (inference, see `kept.py`),
None for plain causal attention. What computes it is in `backends.py`.
"""

from abc import ABC, abstractmethod
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from medmvl.core.layout import Layout
from medmvl.model.backends import Options, Reach, Row, attend, choose

NAME = "medmvl"


class Keeping(ABC):
    """A layout that has the keys and values of what was read before, and keeps those of the tokens it reads."""

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, window: int | None, options: Options) -> Tensor:
        """Return what the new tokens [B, H, Q, D] see, [B, Q, H, D]; called layer by layer, in the LLM's own order."""


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
    if torch.is_autocast_enabled(query.device.type):
        # As SDPA does by itself. Rotary embeddings leave queries and keys in fp32 beside values in half precision.
        half = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(half) if x.dtype == torch.float32 else x for x in (query, key, value))
    options = Options(scaling, dropout, softcap, s_aux)
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
        row = _row(choose(query, value, options), layout, query.device)
        return row.attend(query, key, value, sliding_window, options), None
    return out.transpose(1, 2).contiguous(), None


@lru_cache(maxsize=32)  # every layer asks for the same row
def _row(backend: type[Row], layout: Layout, device: torch.device) -> Row:
    return backend(layout, device)


def _plain_mask(query: Tensor, key: Tensor, window: int | None) -> Tensor | None:
    """Mask of queries that are the last tokens of a causal row; None where SDPA's own causal rule says the same."""
    queries, keys = query.shape[2], key.shape[2]
    if queries == keys and (window is None or window >= keys):
        return None
    steps = torch.arange(keys, device=query.device)
    return Reach(steps[keys - queries :, None] - steps).mask(window)


def _no_mask(attention_mask: Tensor | None = None, **kwargs: object) -> None:
    """Build no mask: the layout says it all. A padded batch without a layout would be silently wrong: refused."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError(f"attention {NAME!r} takes padding through `layout`, not through an attention mask with zeros")


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
