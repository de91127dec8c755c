"""The 3D vision transformer of MedM-CLIP-CT, with the names of its published weights, and trainable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from medmvl.model.connectors import attend
from medmvl.model.encoders.base import Context
from medmvl.model.encoders.native import NativeEncoder, Patches, check_heads, check_tokens, used_blocks
from medmvl.model.encoders.published import Names

MEAN, STD = 55.6982188356434, 66.1943479570918
"""Of the values 0..255 that stand for -1000..1000 HU."""


class MedMClipCt(NativeEncoder):
    """Post-norm blocks with ReLU behind a normed patch embedding and a class token: 88,011,776 parameters.

    The defaults are MedM-CLIP-CT's (shiym2000/MedM-CLIP-CT), and so are its weights' names. Positions are learned, the
    class token's too, and interpolated where the spec asks for another size than `image_size`. The published code cuts
    the gradient off behind every block; here it flows. `mlp_head` serves the contrastive loss only: it stays in the
    state dict, but no feature reaches it.

    Args:
        image_size: depth, height and width that the positions are for.
        patch_size: of a patch, the same.
        in_channels: 1, or 3 for grey volumes repeated.
        width: channels of a token.
        mlp: inner width of the feed-forward layers.
        layers, heads: blocks, and attention heads of each.
        weights: file, folder or hub name of published weights: the ViT alone, MedM-CLIP-CT, or a MedM-VL model that
            holds it. By default random ones.
        layer: hidden state taken as feature; 0 the patch embedding, -1 the last block, after its norm.
        tokens: "all" keeps the class token in front, "patches" drops it.
        spec: fields of the VisionSpec to set otherwise than: `image_size`, -1000..1000 HU as 0..255, cropped to the
            foreground, resized without antialiasing, `MEAN` and `STD`. The published code crops after it has
            standardised, so to what lies above `MEAN`: crop_foreground 0.21842 does as it does.
        context: how it is being built.

    Raises:
        EncoderError: options that do not fit each other, or weights that do not fit the options.
    """

    row = "medm_clip_ct"
    names = Names(
        prefixes={
            "": "",
            "vision_encoder.": r"text_encoder\.|logit_scale$",
            "encoder_image3d.encoder.vision_encoder.": ".",
        },
    )
    _no_split_modules = ("MedMClipBlock",)

    def __init__(
        self,
        image_size: Sequence[int] = (32, 256, 256),
        patch_size: Sequence[int] = (4, 16, 16),
        in_channels: int = 1,
        width: int = 768,
        mlp: int = 3072,
        layers: int = 12,
        heads: int = 12,
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
        self._set_shape(_spec(image_size, in_channels), spec, patch_size, width)
        self.class_tokens = int(tokens == "all")
        self.options = {
            "image_size": list(image_size),
            "patch_size": list(patch_size),
            "in_channels": in_channels,
            "width": width,
            "mlp": mlp,
            "layers": layers,
            "heads": heads,
        }
        vector = in_channels * math.prod(patch_size)
        self.pos_embedding = nn.Parameter(torch.empty(1, 1 + math.prod(self._made_for), width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.to_patch_embedding = nn.Sequential(
            Patches(patch_size, "yxzc"), nn.LayerNorm(vector), nn.Linear(vector, width), nn.LayerNorm(width)
        )
        self.transformer_layers = nn.ModuleList(MedMClipBlock(width, mlp, heads) for _ in range(layers))
        self.mlp_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        nn.init.normal_(self.pos_embedding, std=0.02)
        nn.init.normal_(self.cls_token, std=0.02)
        self._load(weights, context)

    @classmethod
    def options_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        published = {"width": "hidden_size", "mlp": "image_mlp_dim", "layers": "image_num_layers"}
        options = {own: config[key] for own, key in {**published, "heads": "image_num_heads"}.items() if key in config}
        for option, depth, side in (
            ("image_size", config.get("frame_size", 32), config.get("image_size", 256)),
            ("patch_size", config.get("frame_patch_size", 4), config.get("image_patch_size", 16)),
        ):
            # The published code writes depth, height and width over `image_size` when it has run.
            options[option] = [depth, side, side] if isinstance(side, int) else list(side)
        return options

    def reachable(self) -> frozenset[str]:
        unused = ["mlp_head.", *(f"transformer_layers.{i}." for i in range(self.used, len(self.transformer_layers)))]
        if not self.used and not self.class_tokens:
            unused.append("cls_token")
        return self._without(unused)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the tokens [B, num_tokens, width] of volumes [B, C, D, H, W] prepared to `spec`."""
        patches = self.to_patch_embedding(self.as_weights(pixels)).flatten(1, 3)
        first, others = self.pos_embedding[:, :1], self._positions(self.pos_embedding[:, 1:])
        if not self.used and not self.class_tokens:
            return patches + others
        x = torch.cat([(self.cls_token + first).expand(len(patches), -1, -1), patches + others], dim=1)
        for index in range(self.used):
            x = self.transformer_layers[index](x)
        return x[:, 1 - self.class_tokens :]


class MedMClipBlock(GradientCheckpointingLayer):
    """norm(x + attention(x)), then norm(x + mlp(x)) with a ReLU inside; tokens [B, T, width]."""

    def __init__(self, width: int, mlp: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, mlp), nn.Linear(mlp, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class Attention(nn.Module):
    """Self-attention with one weight for queries, keys and values, as torch's own keeps it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        return self.out_proj(attend(*mixed.chunk(3, dim=-1), self.heads))


def _spec(image_size: Sequence[int], channels: int) -> dict[str, Any]:
    return {
        "size": tuple(image_size),
        "channels": channels,
        "mean": (MEAN,) * channels,
        "std": (STD,) * channels,
        "rescale": 1.0,
        "hu_window": (-1000, 1000),
        "crop_foreground": 0.0,
        "antialias": False,
    }
