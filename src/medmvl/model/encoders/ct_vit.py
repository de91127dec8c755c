"""CT-CLIP's CTViT: space first, depth second, tokens from a codebook; its quirks are kept for parity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from medmvl.core.lookup import choices_text
from medmvl.model.connectors import attend
from medmvl.model.encoders.base import Context, EncoderError
from medmvl.model.encoders.native import NativeEncoder, Patches, check_heads, check_tokens
from medmvl.model.encoders.published import Names

PEGS = ("reference", "geometric")
_SCALE = 8.0
_AT_ONCE = 2048
"""Tokens compared with the whole codebook at a time, which bounds memory."""


class CtVit(NativeEncoder):
    """Spatial, then temporal transformer over patches, then the nearest code: 25,890,200 parameters.

    The defaults are CT-CLIP's, and so are its weights' names: 157 of them, with parts that no feature reaches
    (`to_patch_emb_first_frame`, `to_pixels*`, every `context_norm` and `null_kv`). Kept as published: keys and values
    come from the input before its norm; queries and keys have unit length, scaled per channel; the convolution in front
    of each temporal block reads its tokens in an order they are not in (see `temporal_peg`).

    The codebook is a buffer and does not learn. With `quantise`, tokens are codes, and the gradient passes straight
    through to the tokens that were replaced, as in the training of vector quantisers: everything before it learns.

    Args:
        image_size: depth, height and width of the input; nothing learned depends on it.
        patch_size: of a patch, the same.
        in_channels: 1, or 3 for grey volumes repeated.
        width: channels of a token.
        head_width, heads: channels of an attention head, and how many.
        spatial_layers, temporal_layers: blocks of the two transformers.
        codes: entries of the codebook.
        quantise: whether the feature is the nearest codes, as CT-CLIP and CT-CHAT take it, or the tokens before.
        temporal_peg: "reference": tokens laid out (row, column, depth) are read as (depth, row, column), as in the
            published code; with equal numbers of each, the convolution runs over (row, column, depth). "geometric":
            they are put in order first, for training from scratch.
        weights: file or folder of published weights: the CTViT alone, or CT-CLIP. By default random ones.
        layer: -1, the only one.
        tokens: there is no class token; both choices mean the same.
        spec: fields of the VisionSpec to set otherwise than: `image_size`, 1.5 x 0.75 x 0.75 mm, cropped or padded
            around the centre, -1000..1000 HU as -1..1. CT-CLIP feeds NIfTI arrays as they are stored, rows along x:
            orientation "SLP" is what that means for files whose axes grow to left, posterior and superior, as most of
            CT-RATE's are thought to do. UNCONFIRMED: no file of CT-RATE has been compared.
        context: how it is being built.

    Raises:
        EncoderError: options that do not fit each other, or weights that do not fit the options.
    """

    row = "ct_vit"
    names = Names(
        prefixes={
            "": "",
            "visual_transformer.": r"text_transformer\.|to_(text|visual)_latent(_extra)?\.|temperature$",
        },
        ignored=r"dec_(spatial|temporal)_transformer\.",
        optional=r"to_patch_emb_first_frame\.|to_pixels|.*\.(context_norm\.|null_kv$)|vq\._codebook\.(initted|cluster_size)$",
    )
    _no_split_modules = ("CtVitBlock",)

    def __init__(
        self,
        image_size: Sequence[int] = (240, 480, 480),
        patch_size: Sequence[int] = (10, 20, 20),
        in_channels: int = 1,
        width: int = 512,
        head_width: int = 32,
        heads: int = 8,
        spatial_layers: int = 4,
        temporal_layers: int = 4,
        codes: int = 8192,
        quantise: bool = True,
        temporal_peg: Literal["reference", "geometric"] = "reference",
        weights: str | None = None,
        layer: int = -1,
        tokens: str = "all",
        spec: Mapping[str, Any] | None = None,
        context: Context | None = None,
    ) -> None:
        super().__init__()
        check_tokens(tokens)
        check_heads(heads * head_width, heads)
        if layer != -1:
            raise EncoderError(f"'ct_vit' gives its last layer only: layer must be -1, got {layer}")
        if temporal_peg not in PEGS:
            raise EncoderError(f"temporal_peg: unknown {temporal_peg!r}; {choices_text(str(temporal_peg), PEGS)}")
        self._set_shape(_spec(image_size, in_channels), spec, patch_size, width)
        self.quantise, self.temporal_peg = quantise, temporal_peg
        self.options = {
            "image_size": list(image_size),
            "patch_size": list(patch_size),
            "in_channels": in_channels,
            "width": width,
            "head_width": head_width,
            "heads": heads,
            "spatial_layers": spatial_layers,
            "temporal_layers": temporal_layers,
            "codes": codes,
            "quantise": quantise,
            "temporal_peg": temporal_peg,
        }
        vector, first = in_channels * math.prod(patch_size), in_channels * math.prod(patch_size[1:])
        self.spatial_rel_pos_bias = PositionBias(width, heads)
        self.to_patch_emb_first_frame = _embedding(nn.Identity(), first, width)
        self.to_patch_emb = _embedding(Patches(patch_size, "czyx"), vector, width)
        self.enc_spatial_transformer = Transformer(width, head_width, heads, spatial_layers)
        self.enc_temporal_transformer = Transformer(width, head_width, heads, temporal_layers)
        self.vq = Quantiser(width, codes)
        self.to_pixels_first_frame = nn.Sequential(nn.Linear(width, first))
        self.to_pixels = nn.Sequential(nn.Linear(width, vector))
        self._load(weights, context)

    def reachable(self) -> frozenset[str]:
        return frozenset(
            name
            for name in self._without(("to_patch_emb_first_frame.", "to_pixels", "vq."))
            if ".context_norm." not in name
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the tokens [B, num_tokens, width] of volumes [B, C, D, H, W] prepared to `spec`."""
        x = self.to_patch_emb(self.as_weights(pixels))
        batch, depth, height, width, _ = shape = x.shape
        x = self.enc_spatial_transformer(
            x.flatten(2, 3).flatten(0, 1), shape[:4], bias=self.spatial_rel_pos_bias(height, width)
        )
        x = x.unflatten(0, (batch, depth)).transpose(1, 2).flatten(0, 1)
        in_order = self.temporal_peg == "geometric"
        x = self.enc_temporal_transformer(x, (batch, height, width, depth) if in_order else shape[:4], in_order)
        x = x.unflatten(0, (batch, height * width)).transpose(1, 2).flatten(1, 2)
        return self.vq(x) if self.quantise else x


class Transformer(nn.Module):
    """Blocks and a norm over sequences [N, T, width] that lie in a volume of tokens."""

    def __init__(self, width: int, head_width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CtVitBlock(width, head_width, heads) for _ in range(layers))
        self.norm_out = Norm(width)

    def forward(self, x: Tensor, shape: Sequence[int], depth_last: bool = False, bias: Tensor | None = None) -> Tensor:
        """Run sequences whose tokens, all together, have the shape (batch, and three axes of the grid).

        Args:
            x: sequences.
            shape: as the convolutions see it.
            depth_last: whether the last of its axes is the depth, which the convolutions then take first.
            bias: [heads, T, T], added to the attention's logits.
        """
        for layer in self.layers:
            x = layer(x, tuple(shape), depth_last, bias)
        return self.norm_out(x)


class CtVitBlock(GradientCheckpointingLayer):
    """Convolution, attention and feed-forward layer, each added to its input; named 0, 1 and 3 as published."""

    def __init__(self, width: int, head_width: int, heads: int) -> None:
        super().__init__()
        inner = int(4 * (2 / 3) * width)
        feed = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * inner, bias=False),
            Geglu(),
            nn.Identity(),
            nn.Linear(inner, width, bias=False),
        )
        for name, part in (("0", Peg(width)), ("1", Attention(width, head_width, heads)), ("3", feed)):
            self.add_module(name, part)

    def forward(self, x: Tensor, shape: tuple[int, ...], depth_last: bool, bias: Tensor | None) -> Tensor:
        convolve, attention, feed = self.children()
        x = x + convolve(x, shape, depth_last)
        x = x + attention(x, bias)
        return x + feed(x)


class Peg(nn.Module):
    """A depthwise 3 x 3 x 3 convolution that gives tokens their place; along the first axis it looks back only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dsconv = nn.Conv3d(width, width, 3, groups=width)

    def forward(self, x: Tensor, shape: tuple[int, ...], depth_last: bool) -> Tensor:
        order = (0, 4, 3, 1, 2) if depth_last else (0, 4, 1, 2, 3)
        volume = F.pad(x.reshape(*shape, -1).permute(order), (1, 1, 1, 1, 2, 0))
        back = (0, 3, 4, 2, 1) if depth_last else (0, 2, 3, 4, 1)
        return self.dsconv(volume).permute(back).reshape(x.shape)


class Attention(nn.Module):
    """Attention by angle: queries and keys of unit length, times a learned scale per channel."""

    def __init__(self, width: int, head_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.context_norm = Norm(width), Norm(width)
        self.register_buffer("null_kv", torch.zeros(heads, 0, head_width))
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.q_scale, self.k_scale = nn.Parameter(torch.ones(head_width)), nn.Parameter(torch.ones(head_width))
        self.to_out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        query = self._unit(self.to_q(self.norm(x)), self.q_scale)
        key, value = self.to_kv(x).chunk(2, dim=-1)  # of the input as it is, before the norm
        key = self._unit(key, self.k_scale)
        mask = None if bias is None else bias.to(query.dtype)
        return self.to_out(attend(query, key, value.to(query.dtype), self.heads, attn_mask=mask, scale=_SCALE))

    def _unit(self, x: Tensor, scale: Tensor) -> Tensor:
        return (F.normalize(x.unflatten(-1, (self.heads, -1)), dim=-1) * scale).flatten(-2)


class Norm(nn.Module):
    """Layer normalisation with a learned scale and a shift that stays zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.register_buffer("beta", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class Geglu(nn.Module):
    """The first half of the channels, times the GELU of the second."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


class PositionBias(nn.Module):
    """What attention adds for the offset between two tokens of a plane, from a small network: [heads, T, T]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.1)),
                nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(0.1)),
                nn.Linear(width, heads),
            ]
        )

    def forward(self, height: int, width: int) -> Tensor:
        # Every offset goes through the network once, not once for each pair of tokens.
        weight = self.net[-1].weight
        rows = torch.arange(height, device=weight.device)
        columns = torch.arange(width, device=weight.device)
        down = torch.arange(1 - height, height, device=weight.device)
        right = torch.arange(1 - width, width, device=weight.device)
        offsets = torch.stack(torch.meshgrid(down, right, indexing="ij"), dim=-1).flatten(0, 1).float()
        x = (offsets.sign() * torch.log(offsets.abs() + 1)).to(weight.dtype)
        for layer in self.net:
            x = layer(x)
        row, column = (one.flatten() for one in torch.meshgrid(rows, columns, indexing="ij"))
        index = (row[:, None] - row + height - 1) * (2 * width - 1) + column[:, None] - column + width - 1
        return x.t()[:, index]


class Quantiser(nn.Module):
    """Tokens become the codes nearest to them by angle; their gradient passes straight through."""

    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        self._codebook = Codebook(width, codes)

    def forward(self, x: Tensor) -> Tensor:
        return _StraightThrough.apply(x, self._codebook(x.detach().flatten(0, 1)).view_as(x))


class Codebook(nn.Module):
    """Fixed codes [1, codes, width], with the two buffers that their training kept beside them."""

    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        codebook = torch.empty(1, codes, width)
        nn.init.normal_(codebook)
        self.register_buffer("initted", torch.ones(1))
        self.register_buffer("cluster_size", torch.zeros(1, codes))
        self.register_buffer("embed", F.normalize(codebook, dim=-1))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return the code [N, width] of each token [N, width], compared in float32 whatever their precision."""
        codes = self.embed[0]
        device = x.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            directions = F.normalize(codes.float(), dim=-1).t()
            parts = F.normalize(x.float(), dim=-1).split(_AT_ONCE)
            nearest = torch.cat([(part @ directions).argmax(dim=-1) for part in parts])
        return codes[nearest].to(x.dtype)


class _StraightThrough(torch.autograd.Function):
    """The value of the second, the gradient for the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, code: Tensor) -> Tensor:
        return code.view_as(code)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _embedding(cut: nn.Module, vector: int, width: int) -> nn.Sequential:
    return nn.Sequential(cut, nn.LayerNorm(vector), nn.Linear(vector, width), nn.LayerNorm(width))


def _spec(image_size: Sequence[int], channels: int) -> dict[str, Any]:
    return {
        "size": tuple(image_size),
        "channels": channels,
        "mean": (0.5,) * channels,
        "std": (0.5,) * channels,
        "fit": "crop",
        "orientation": "SLP",
        "hu_window": (-1000, 1000),
        "spacing": (1.5, 0.75, 0.75),
        "antialias": False,
    }
