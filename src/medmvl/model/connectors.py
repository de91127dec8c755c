"""Connectors: they turn an encoder's tokens into the media tokens that the LLM reads.

Contract: a connector is built from `(grid, width_in, width_out, **options)`, says `num_tokens`, and maps
[B, prod(grid), width_in] to [B, num_tokens, width_out]. `grid` is (h, w), (d, h, w), or (n,) when the tokens form no
grid (a class token kept among them). Connectors know nothing of images, placeholders or the LLM.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmvl.core.lookup import choices_text, resolve
from medmvl.model.config import CONNECTORS  # beside the settings, so that a recipe is checked without torch


class ConnectorError(ValueError):
    """Options that a connector does not take, or a grid or width that does not fit them."""


def build_connector(
    name: str,
    grid: Sequence[int],
    width_in: int,
    width_out: int,
    options: Mapping[str, Any] | None = None,
    where: str = "connector",
) -> nn.Module:
    """Build a connector by name.

    Args:
        name: a row of `CONNECTORS` or a dotted path "package.module:Class".
        grid: the encoder's token grid; width_in and width_out are the encoder's and the LLM's widths.
        options: keyword options of the connector.
        where: what is being built, for errors ("connector of tower 'image'").

    Raises:
        LookupNameError: the name is unknown.
        ConnectorError: an unknown option, or a grid/width/option that does not fit.
    """
    cls = resolve(CONNECTORS, name, where)
    options = dict(options or {})
    parameters = inspect.signature(cls).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        known = list(parameters)[3:]
        for option in options:
            if option not in known:
                hint = choices_text(option, known, noun="options")
                raise ConnectorError(f"{where}: {name!r} takes no option {option!r}; {hint}")
    try:
        return cls(tuple(grid), width_in, width_out, **options)
    except (ConnectorError, TypeError) as error:
        raise ConnectorError(f"{where}: {name!r} with options {options}: {error}") from error


class Mlp(nn.Sequential):
    """`depth` linear layers with exact GELU between them; LLaVA's `mlp2x_gelu` is depth 2.

    Keys are those of the plain sequence (`0.weight`, `2.weight`, ...), as in LLaVA's projector.
    """

    def __init__(self, grid: tuple[int, ...], width_in: int, width_out: int, depth: int = 2) -> None:
        _at_least("mlp", "depth", depth, 1)
        layers: list[nn.Module] = [nn.Linear(width_in, width_out)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(width_out, width_out)]
        super().__init__(*layers)
        self.num_tokens = math.prod(grid)


class Linear(Mlp):
    """One linear layer, token by token."""

    def __init__(self, grid: tuple[int, ...], width_in: int, width_out: int) -> None:
        super().__init__(grid, width_in, width_out, depth=1)


class Pool(nn.Module):
    """Mean over blocks of neighbouring tokens, then an mlp.

    `size` is the block's side, one number or one per axis; it must divide the grid, for a floor division would
    silently drop the last row of the image.
    """

    def __init__(
        self, grid: tuple[int, ...], width_in: int, width_out: int, size: int | Sequence[int] = 2, depth: int = 2
    ) -> None:
        super().__init__()
        if len(grid) < 2:
            raise ConnectorError(
                f"'pool' needs a grid of 2 or 3 axes, got {grid}: the class token is among the tokens; "
                "choose `tokens: patches` for this tower"
            )
        sizes = (size,) * len(grid) if isinstance(size, int) else tuple(size)
        if len(sizes) != len(grid) or any(s < 1 or g % s for s, g in zip(sizes, grid, strict=False)):
            fits = [s for s in range(1, min(grid) + 1) if all(g % s == 0 for g in grid)]
            raise ConnectorError(
                f"'pool' cannot cut the grid {grid} into blocks of size {size}; a single size must be one of {fits}, "
                f"a list needs {len(grid)} numbers, each a divisor of its axis"
            )
        self.grid, self.sizes = grid, sizes
        self.num_tokens = math.prod(g // s for g, s in zip(grid, sizes, strict=True))
        self.mlp = Mlp((self.num_tokens,), width_in, width_out, depth)

    def forward(self, x: Tensor) -> Tensor:
        blocks = [n for g, s in zip(self.grid, self.sizes, strict=True) for n in (g // s, s)]
        inside = tuple(range(2, 2 * len(self.grid) + 1, 2))
        pooled = x.reshape(x.shape[0], *blocks, x.shape[-1]).mean(dim=inside)
        return self.mlp(pooled.flatten(1, -2))


class Attention(nn.Module):
    """Learned queries attend to all tokens once (plain multi-head attention), then an mlp.

    The output does not depend on the order of the tokens: position has to be in them, as it is after any ViT. For
    others `positions: true` adds a learned embedding per input token, zero at the start.
    """

    def __init__(
        self,
        grid: tuple[int, ...],
        width_in: int,
        width_out: int,
        queries: int = 256,
        heads: int = 8,
        depth: int = 2,
        positions: bool = False,
    ) -> None:
        super().__init__()
        _at_least("attention", "queries", queries, 1)
        _check_heads("attention", heads, width_in)
        self.num_tokens = queries
        # Unit variance, not the usual 0.02: nearly equal queries would all read the same mean of the image.
        self.query = nn.Parameter(torch.randn(queries, width_in))
        self.attn = nn.MultiheadAttention(width_in, heads, batch_first=True)
        self.positions = nn.Parameter(torch.zeros(math.prod(grid), width_in)) if positions else None
        self.mlp = Mlp((queries,), width_in, width_out, depth)

    def forward(self, x: Tensor) -> Tensor:
        if self.positions is not None:
            x = x + self.positions
        query = self.query.expand(x.shape[0], -1, -1)
        # Without weights torch takes its fused attention: no [queries, tokens] matrix in memory.
        return self.mlp(self.attn(query, x, x, need_weights=False)[0])


class Perceiver(nn.Module):
    """Flamingo's resampler: latents attend to the tokens and to themselves, `depth` times, then one linear layer.

    Keys and values are concat(tokens, latents); each layer adds attention and a 4x GELU feed-forward to the latents.
    Source: Alayrac et al. 2022, "Flamingo", appendix A.1.1.
    """

    def __init__(
        self,
        grid: tuple[int, ...],
        width_in: int,
        width_out: int,
        latents: int = 64,
        depth: int = 2,
        heads: int = 8,
        positions: bool = False,
    ) -> None:
        super().__init__()
        _at_least("perceiver", "latents", latents, 1)
        _at_least("perceiver", "depth", depth, 1)
        _check_heads("perceiver", heads, width_in)
        self.num_tokens = latents
        self.latents = nn.Parameter(torch.randn(latents, width_in))
        self.positions = nn.Parameter(torch.zeros(math.prod(grid), width_in)) if positions else None
        self.layers = nn.ModuleList(PerceiverLayer(width_in, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width_in)
        self.out = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        if self.positions is not None:
            x = x + self.positions
        latents = self.latents.expand(x.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(x, latents)
        return self.out(self.norm(latents))


class PerceiverLayer(nn.Module):
    """One resampler layer: pre-norm cross-attention [B, L, C] <- [B, T + L, C], then pre-norm feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        normed = self.norm_latents(latents)
        query = self._split(self.query(normed))
        memory = torch.cat([self.norm_media(media), normed], dim=1)
        key, value = (self._split(part) for part in self.key_value(memory).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        latents = latents + self.out(attended)
        return latents + self.feed_forward(latents)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _at_least(name: str, option: str, value: int, least: int) -> None:
    if value < least:
        raise ConnectorError(f"{name!r} needs {option} >= {least}, got {value}")


def _check_heads(name: str, heads: int, width: int) -> None:
    if heads < 1 or width % heads:
        fits = [h for h in range(1, 65) if width % h == 0]
        raise ConnectorError(f"{name!r} cannot cut the width {width} into {heads} heads; heads must be one of {fits}")
