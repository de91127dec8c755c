"""Connectors: they turn an encoder's tokens into the media tokens that the LLM reads.

Contract: a connector is built from `(grid, width_in, width_out, **options)`, says `num_tokens`, and maps
[B, prod(grid), width_in] to [B, num_tokens, width_out]. `grid` is (h, w), (d, h, w), or (n,) when the tokens form no
grid (class tokens kept among them). Connectors know nothing of images, placeholders or the LLM.

An encoder of two branches and a text (`dual`) has `DualGrid` and `DualWidth` in place of grid and width, and gives
`DualTokens`; a connector for those has the attribute `dual = True`, and M is the number of questions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmvl.core.lookup import resolve
from medmvl.core.options import check_options
from medmvl.model.config import CONNECTORS  # beside the settings, so that a recipe is checked without torch

Positions = Literal["none", "tokens", "slices"]
"""What a connector may learn about the places of its input: nothing, a vector for each token, or for each slice."""
GIVEN = ("grid", "width_in", "width_out")
"""Parameters of connectors that are no options."""
ANY_GRID = ("linear", "mlp", "attention", "attention_pool", "perceiver")
"""Connectors that take tokens whether or not they form a grid."""


class ConnectorError(ValueError):
    """Options that a connector does not take, or a grid or width that does not fit them."""


class DualGrid(NamedTuple):
    """The tokens of both branches: (d, h, w) of the volume's; how many slices, and tokens of each slice."""

    volume: tuple[int, ...]
    slices: tuple[int, int]


class DualWidth(NamedTuple):
    """Channels of a token of the volume, of a token of a slice, and of the text vector."""

    volume: int
    slices: int
    text: int

    def __str__(self) -> str:
        return f"{self.volume} and {self.slices}"


class DualTokens(NamedTuple):
    """What an encoder of two branches gives for U volumes and M questions about them.

    Attributes:
        volume: [U, d * h * w, width of the volume].
        slices: [U, slices * tokens of each, width of the slices].
        text: [M, width of the text], a vector for each question.
        source: long [M], the volume that each question is about.
    """

    volume: Tensor
    slices: Tensor
    text: Tensor
    source: Tensor


def build_connector(
    name: str,
    grid: Sequence[int] | DualGrid,
    width_in: int | DualWidth,
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
        ConnectorError: options that it does not take or cannot read, or a grid/width/option that does not fit.
    """
    cls = resolve(CONNECTORS, name, where)
    dual = isinstance(grid, DualGrid)
    if dual != getattr(cls, "dual", False):
        what = "a volume, its slices and a question" if dual else f"one grid of tokens, {tuple(grid)}"
        fits = "connector 'text_guided'" if dual else "encoder 'dual'; for this encoder choose another connector"
        raise ConnectorError(f"{where}: the encoder gives {what}, which {name!r} cannot read; it goes with {fits}")
    options = dict(options or {})
    try:
        check_options(cls, options, given=GIVEN)
        return cls(grid if dual else tuple(grid), width_in, width_out, **options)
    except (ValueError, TypeError) as error:
        raise ConnectorError(f"{where}: {name!r} with options {options}: {error}") from error


class Mlp(nn.Sequential):
    """`depth` linear layers with exact GELU between them; LLaVA's `mlp2x_gelu` is depth 2.

    Keys are those of the plain sequence (`0.weight`, `2.weight`, ...), as in LLaVA's projector.

    Args:
        grid, width_in, width_out: see `build_connector`.
        depth: linear layers.
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

    Args:
        grid, width_in, width_out: see `build_connector`.
        size: side of a block, one number or one per axis; it must divide the grid, for a floor division would silently
            drop the last row of the image.
        depth: linear layers of the mlp.
    """

    def __init__(
        self, grid: tuple[int, ...], width_in: int, width_out: int, size: int | Sequence[int] = 2, depth: int = 2
    ) -> None:
        super().__init__()
        _check_axes("pool", grid, {2: "(rows, columns)", 3: "(slices, rows, columns)"})
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


class Average(nn.Module):
    """Mean over the slices of a volume, then an mlp: as many tokens as one slice has (2D + Avg of MedM-VL).

    Args:
        grid, width_in, width_out: see `build_connector`.
        depth: linear layers of the mlp.
    """

    def __init__(self, grid: tuple[int, ...], width_in: int, width_out: int, depth: int = 2) -> None:
        super().__init__()
        _check_axes("average", grid, {3: "(slices, rows, columns)"})
        self.grid = grid
        self.num_tokens = grid[1] * grid[2]
        self.mlp = Mlp(grid[1:], width_in, width_out, depth)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.unflatten(1, (self.grid[0], -1)).mean(dim=1))


class Places(nn.Module):
    """A learned vector for each token or each slice, added to the tokens; zero at the start.

    Attention does not depend on the order of the tokens: what it needs to know of their places has to be in them. After
    a ViT a token knows its place in its picture, but not which slice of a volume its picture was.
    """

    def __init__(self, name: str, grid: tuple[int, ...], width: int, kind: Positions) -> None:
        super().__init__()
        if kind not in get_args(Positions):
            raise ConnectorError(f"{name!r}: positions must be one of {', '.join(get_args(Positions))}, got {kind!r}")
        if kind == "slices":
            _check_axes(f"{name} with positions: slices", grid, {3: "(slices, rows, columns)"})
        self.places = grid[0] if kind == "slices" else math.prod(grid)
        self.weight = None if kind == "none" else nn.Parameter(torch.zeros(self.places, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return x
        return (x.unflatten(1, (self.places, -1)) + self.weight[:, None]).flatten(1, 2)


class Attention(nn.Module):
    """Learned queries attend to all tokens once (plain multi-head attention), then an mlp.

    Keys are those of published MedM-VL-CT weights: `query`, `attn.*`; their `connector.*` is `mlp.*`.

    Args:
        grid, width_in, width_out: see `build_connector`.
        queries: tokens that it gives.
        heads: attention heads, which share the encoder's width.
        depth: linear layers of the mlp.
        positions: what is learned about places, and added to the tokens: "none", a vector for each of "tokens", or for
            each of "slices".
    """

    def __init__(
        self,
        grid: tuple[int, ...],
        width_in: int,
        width_out: int,
        queries: int = 256,
        heads: int = 8,
        depth: int = 2,
        positions: Positions = "none",
    ) -> None:
        super().__init__()
        _at_least("attention", "queries", queries, 1)
        _check_heads("attention", heads, width_in)
        self.num_tokens = queries
        # Unit variance, not the usual 0.02: nearly equal queries would all read the same mean of the image.
        self.query = nn.Parameter(torch.randn(queries, width_in))
        self.positions = Places("attention", grid, width_in, positions)
        self.attn = nn.MultiheadAttention(width_in, heads, batch_first=True)
        self.mlp = Mlp((queries,), width_in, width_out, depth)

    def forward(self, x: Tensor) -> Tensor:
        x = self.positions(x)
        query = self.query.expand(x.shape[0], -1, -1)
        # Without weights torch takes its fused attention: no [queries, tokens] matrix in memory.
        return self.mlp(self.attn(query, x, x, need_weights=False)[0])


class AttentionPool(nn.Module):
    """CT-CHAT's pooler: normed queries attend to normed tokens without biases, then a norm and an mlp.

    Keys are those of the published projector: `attn_pool.*`, `ln.*`, `proj.*`.

    Args:
        grid, width_in, width_out: see `build_connector`.
        queries: tokens that it gives.
        heads: attention heads, which share the encoder's width.
        depth: linear layers of the mlp.
        positions: what is learned about places, and added to the tokens: "none", a vector for each of "tokens", or for
            each of "slices".
    """

    def __init__(
        self,
        grid: tuple[int, ...],
        width_in: int,
        width_out: int,
        queries: int = 256,
        heads: int = 8,
        depth: int = 2,
        positions: Positions = "none",
    ) -> None:
        super().__init__()
        _at_least("attention_pool", "queries", queries, 1)
        _check_heads("attention_pool", heads, width_in)
        self.num_tokens = queries
        self.positions = Places("attention_pool", grid, width_in, positions)
        self.attn_pool = Pooler(width_in, queries, heads)
        self.ln = nn.LayerNorm(width_in)
        self.proj = Mlp((queries,), width_in, width_out, depth)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.ln(self.attn_pool(self.positions(x))))


class Pooler(nn.Module):
    """Cross-attention [B, queries, C] <- [B, T, C] between layer norms of learned queries and of the tokens."""

    def __init__(self, width: int, queries: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(queries, width))
        self.ln_k, self.ln_q = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query = self.to_q(self.ln_q(self.query)).expand(x.shape[0], -1, -1)
        key, value = self.to_kv(self.ln_k(x)).chunk(2, dim=-1)
        return self.to_out(attend(query, key, value, self.heads))


class Perceiver(nn.Module):
    """Flamingo's resampler: latents attend to the tokens and to themselves, `depth` times, then one linear layer.

    Keys and values are concat(tokens, latents); each layer adds attention and a 4x GELU feed-forward to the latents.
    RadFM's has 32 latents, depth 6 and 8 heads of `head_width` 64.

    Source: Alayrac et al. 2022, "Flamingo", appendix A.1.1.

    Args:
        grid, width_in, width_out: see `build_connector`.
        latents: tokens that it gives.
        depth: layers.
        heads: attention heads.
        head_width: channels of a head, whatever the encoder's width; by default the heads share that.
        positions: what is learned about places, and added to the tokens: "none", a vector for each of "tokens", or for
            each of "slices".
    """

    def __init__(
        self,
        grid: tuple[int, ...],
        width_in: int,
        width_out: int,
        latents: int = 64,
        depth: int = 2,
        heads: int = 8,
        head_width: int | None = None,
        positions: Positions = "none",
    ) -> None:
        super().__init__()
        _at_least("perceiver", "latents", latents, 1)
        _at_least("perceiver", "depth", depth, 1)
        if head_width is None:
            _check_heads("perceiver", heads, width_in)
            head_width = width_in // heads
        _at_least("perceiver", "heads", heads, 1)
        _at_least("perceiver", "head_width", head_width, 1)
        self.num_tokens = latents
        self.latents = nn.Parameter(torch.randn(latents, width_in))
        self.positions = Places("perceiver", grid, width_in, positions)
        self.layers = nn.ModuleList(PerceiverLayer(width_in, heads, head_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width_in)
        self.out = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.positions(x)
        latents = self.latents.expand(x.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(x, latents)
        return self.out(self.norm(latents))


class PerceiverLayer(nn.Module):
    """One resampler layer: pre-norm cross-attention [B, L, C] <- [B, T + L, C], then pre-norm feed-forward."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, inside = heads, heads * head_width
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.query = nn.Linear(width, inside, bias=False)
        self.key_value = nn.Linear(width, 2 * inside, bias=False)
        self.out = nn.Linear(inside, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        normed = self.norm_latents(latents)
        memory = torch.cat([self.norm_media(media), normed], dim=1)
        key, value = self.key_value(memory).chunk(2, dim=-1)
        latents = latents + self.out(attend(self.query(normed), key, value, self.heads))
        return latents + self.feed_forward(latents)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, **options: Any) -> Tensor:
    """Return multi-head attention [B, Q, C] of a query [B, Q, C] over key and value [B, T, C].

    Args:
        query, key, value: their heads one after another.
        heads: how many.
        options: of torch's own function.
    """
    split = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(*split, **options).transpose(1, 2).flatten(2)


def _check_axes(name: str, grid: tuple[int, ...], takes: Mapping[int, str]) -> None:
    """Refuse a grid whose number of axes a connector does not take; `takes`: axes -> what they are."""
    if len(grid) in takes:
        return
    why = {
        1: "its class tokens stand among the others, so they form no grid; choose `tokens: patches` for this tower",
        2: "these are tokens of pictures, which have no slices",
        3: "these are tokens of volumes",
    }
    raise ConnectorError(
        f"{name!r} takes a grid {' or '.join(takes.values())}, and the encoder gives {grid}: {why[len(grid)]}. "
        f"{', '.join(ANY_GRID)} take any grid"
    )


def _at_least(name: str, option: str, value: int, least: int) -> None:
    if value < least:
        raise ConnectorError(f"{name!r} needs {option} >= {least}, got {value}")


def _check_heads(name: str, heads: int, width: int) -> None:
    if heads < 1 or width % heads:
        fits = [h for h in range(1, 65) if width % h == 0]
        raise ConnectorError(f"{name!r} cannot cut the width {width} into {heads} heads; heads must be one of {fits}")
