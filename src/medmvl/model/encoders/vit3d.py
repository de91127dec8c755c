"""The 3D vision transformer of M3D-CLIP, with the names of its published weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from medmvl.model.connectors import attend
from medmvl.model.encoders.base import Context, EncoderError
from medmvl.model.encoders.native import NativeEncoder, Patches, check_heads, check_tokens, used_blocks
from medmvl.model.encoders.published import Names

_BESIDE = r"language_encoder\.|text_encoder\.|mm_(vision|language)_proj\.|logit_scale$"


class Vit3d(NativeEncoder):
    """Pre-norm blocks over patches read depth by depth, row by row, behind a class token: 87,389,184 parameters.

    The defaults are M3D-CLIP's (GoodBaiBai88/M3D-CLIP), and so are its weights' names: 138 of them. Positions are
    learned, added to the patches only, and interpolated where the spec asks for another size than `image_size`.

    Args:
        image_size: depth, height and width that the positions are for.
        patch_size: of a patch, the same.
        in_channels: 1, or 3 for grey volumes repeated.
        width: channels of a token.
        mlp: inner width of the feed-forward layers.
        layers, heads: blocks, and attention heads of each.
        norm: whether the feature goes through the final norm, as M3D-LaMed takes it (layer -1 only). By default it is
            the output of the last block as it is, as MedM-VL and Med-2E3 take it.
        weights: file, folder or hub name of published weights: the ViT alone, M3D-CLIP, or a model that holds it
            (M3D-LaMed, MedM-VL, Med-2E3). By default random ones.
        layer: hidden state taken as feature; 0 the patch embedding, -1 the last block.
        tokens: "all" keeps the class token in front, "patches" drops it.
        spec: fields of the VisionSpec to set otherwise than: `image_size`, -1000..1000 HU, min-max of what is left
            to 0..1, cropped to the foreground, resized without antialiasing.
        context: how it is being built.

    Raises:
        EncoderError: options that do not fit each other, or weights that do not fit the options.
    """

    row = "vit3d"
    names = Names(
        prefixes={
            "": "",
            "vision_encoder.": _BESIDE,
            "model.vision_tower.vision_tower.": ".",
            "encoder_image3d.encoder.vision_encoder.": ".",
            "vision3d_model.vision3d_encoder.vision_encoder.": ".",
        },
        ignored=r"blocks\.\d+\.(norm_cross_attn|cross_attn)\.",
    )
    _no_split_modules = ("Vit3dBlock",)

    def __init__(
        self,
        image_size: Sequence[int] = (32, 256, 256),
        patch_size: Sequence[int] = (4, 16, 16),
        in_channels: int = 1,
        width: int = 768,
        mlp: int = 3072,
        layers: int = 12,
        heads: int = 12,
        norm: bool = False,
        weights: str | None = None,
        layer: int = -1,
        tokens: str = "all",
        spec: Mapping[str, Any] | None = None,
        context: Context | None = None,
    ) -> None:
        super().__init__()
        check_tokens(tokens)
        check_heads(width, heads)
        self.used = used_blocks(layer, layers)
        if norm and self.used != layers:
            raise EncoderError(f"norm belongs to the last block: layer must be -1, got {layer}")
        self._set_shape(_spec(image_size, in_channels), spec, patch_size, width)
        self.class_tokens, self.normed = int(tokens == "all"), norm
        self.options = {
            "image_size": list(image_size),
            "patch_size": list(patch_size),
            "in_channels": in_channels,
            "width": width,
            "mlp": mlp,
            "layers": layers,
            "heads": heads,
            "norm": norm,
        }
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embedding = PatchEmbedding(self._made_for, patch_size, in_channels, width)
        self.blocks = nn.ModuleList(Vit3dBlock(width, mlp, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.apply(_initialise)
        self._load(weights, context)

    @classmethod
    def options_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        for key, needed in (("pos_embed", "perceptron"), ("spatial_dims", 3)):
            if config.get(key, needed) != needed:
                raise EncoderError(f"{cls.row!r} is the ViT with {key} {needed!r}; config.json says {config[key]!r}")
        published = {
            "image_size": "img_size",
            "patch_size": "patch_size",
            "in_channels": "in_channels",
            "width": "hidden_size",
            "mlp": "mlp_dim",
            "layers": "num_layers",
            "heads": "num_heads",
        }
        return {own: config[key] for own, key in published.items() if key in config}

    def reachable(self) -> frozenset[str]:
        unused = [f"blocks.{index}." for index in range(self.used, len(self.blocks))]
        if not self.normed:
            unused.append("norm.")
        if not self.used and not self.class_tokens:
            unused.append("cls_token")
        return self._without(unused)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the tokens [B, num_tokens, width] of volumes [B, C, D, H, W] prepared to `spec`."""
        patches = self.patch_embedding(self.as_weights(pixels), self._positions)
        if not self.used and not self.class_tokens:
            return patches
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        for index in range(self.used):
            x = self.blocks[index](x)
        if self.normed:
            x = self.norm(x)
        return x[:, 1 - self.class_tokens :]


class PatchEmbedding(nn.Module):
    """Patches [B, C, D, H, W] -> [B, T, width], a patch read as (depth, row, column, channel); holds the positions."""

    def __init__(self, grid: Sequence[int], patch_size: Sequence[int], channels: int, width: int) -> None:
        super().__init__()
        self.patch_embeddings = nn.Sequential(
            Patches(patch_size, "zyxc"), nn.Linear(channels * math.prod(patch_size), width)
        )
        self.position_embeddings = nn.Parameter(torch.empty(1, math.prod(grid), width))
        nn.init.trunc_normal_(self.position_embeddings, std=0.02)

    def forward(self, volumes: Tensor, resize: Callable[[Tensor], Tensor]) -> Tensor:
        return self.patch_embeddings(volumes).flatten(1, 3) + resize(self.position_embeddings)


class Vit3dBlock(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); tokens [B, T, width]."""

    def __init__(self, width: int, mlp: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Self-attention whose queries, keys and values come from one layer without bias, one after another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out_proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attend(*self.qkv(x).chunk(3, dim=-1), self.heads))


class Mlp(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(x)))


def _spec(image_size: Sequence[int], channels: int) -> dict[str, Any]:
    return {
        "size": tuple(image_size),
        "channels": channels,
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
        "hu_window": (-1000, 1000),
        "percentile_window": (0, 100),
        "crop_foreground": 0.0,
        "antialias": False,
    }


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
