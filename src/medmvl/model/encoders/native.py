"""What published 3D encoders in our own code have in common: shapes, patches, loading, recomputing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from medmvl.imaging.spec import VisionSpec
from medmvl.model.config import TowerConfig, Weights
from medmvl.model.encoders import published
from medmvl.model.encoders.base import Context, Encoder, EncoderError, changed

AXES = "czyx"
"""Channel, depth, row and column: letters for the order of a patch's voxels in its vector."""


_BLANK = VisionSpec(size=(1, 1, 1), channels=1, mean=(0.0,), std=(1.0,), resample="bilinear")


class NativeEncoder(Encoder):
    """An encoder whose state dict has the names of the published weights.

    A subclass calls `_set_shape` first, `_load` last, and sets `options` between: what its constructor needs to build
    the same shapes again.
    """

    row: ClassVar[str]
    """Its name in ENCODERS."""
    names: ClassVar[published.Names]
    """How published files call its weights."""
    supports_gradient_checkpointing = True
    options: dict[str, Any]

    @classmethod
    def options_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that a published config.json stands for.

        Raises:
            EncoderError: it describes another architecture.
        """
        raise EncoderError(f"{cls.row!r} is published without a config.json; name its weights as the option `weights`")

    def activation_checkpointing_enable(self, settings: Mapping[str, Any] | None = None) -> None:
        """Recompute the activations of every block in the backward pass.

        Args:
            settings: keywords of torch.utils.checkpoint.checkpoint.
        """
        for layer in self.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, **(settings or {"use_reentrant": False}))

    def self_contained(self, config: TowerConfig) -> TowerConfig:
        own = {"encoder": Weights(path=self.row), "encoder_options": self.options}
        return super().self_contained(config).model_copy(update=own)

    def _set_shape(
        self,
        base: Mapping[str, Any],
        spec: Mapping[str, Any] | None,
        patch_size: Sequence[int],
        width: int,
    ) -> None:
        """Set spec, grid and width; `base` holds the fields of the spec that the weights were made for."""
        made_for = changed(_BLANK, base)
        self.spec = changed(made_for, spec)
        for size in (made_for.size, self.spec.size):
            fits = len(size) == len(patch_size) == 3 and all(
                patch > 0 and side % patch == 0 for side, patch in zip(size, patch_size, strict=True)
            )
            if not fits:
                raise EncoderError(
                    f"{self.row!r} takes volumes whose depth, height and width are multiples of its patches, "
                    f"{tuple(patch_size)}; the size is {tuple(size)}"
                )
        if self.spec.channels != made_for.channels:
            raise EncoderError(
                f"{self.row!r} has weights for {made_for.channels} channels, and the spec says {self.spec.channels}; "
                "set the option in_channels too"
            )
        self.grid = _grid(self.spec.size, patch_size)
        self._made_for = _grid(made_for.size, patch_size)
        self.width = width

    def _positions(self, table: Tensor) -> Tensor:
        """Return the position embeddings [1, T, width] of the grid, interpolated where it is not their own."""
        if self.grid == self._made_for:
            return table
        volume = table.unflatten(1, self._made_for).permute(0, 4, 1, 2, 3).float()
        resized = F.interpolate(volume, size=self.grid, mode="trilinear", align_corners=False)
        return resized.flatten(2).transpose(1, 2).to(table.dtype)

    def _load(self, weights: str | None, context: Context | None) -> None:
        """Load published weights, unless none are named or wanted."""
        if weights is not None and (context is None or context.weights):
            published.load(self, weights, self.names, self.row)
        self.eval()

    def _without(self, prefixes: Iterable[str]) -> frozenset[str]:
        """Return the names of all parameters but those that start with one of `prefixes`."""
        left_out = tuple(prefixes)
        return frozenset(name for name, _ in self.named_parameters() if not name.startswith(left_out))


class Patches(nn.Module):
    """Cut volumes [B, C, D, H, W] into patches [B, d, h, w, vector], the vector's axes in the given order."""

    def __init__(self, patch_size: Sequence[int], order: str) -> None:
        super().__init__()
        self.patch_size, self.order = tuple(patch_size), order

    def forward(self, volumes: Tensor) -> Tensor:
        for axis, side in zip((4, 3, 2), reversed(self.patch_size), strict=True):
            volumes = volumes.unflatten(axis, (-1, side))
        # now [B, c, d, z, h, y, w, x]
        inside = dict(zip(AXES, (1, 3, 5, 7), strict=True))
        return volumes.permute(0, 2, 4, 6, *(inside[axis] for axis in self.order)).flatten(4)


def used_blocks(layer: int, layers: int) -> int:
    """Return how many of `layers` blocks the hidden state `layer` takes: 0 is the embedding, -1 the last block.

    Raises:
        EncoderError: there is no such hidden state.
    """
    if not -layers - 1 <= layer <= layers:
        raise EncoderError(f"layer {layer} does not exist; choose {-layers - 1}..{layers}, -1 is the last")
    return layer % (layers + 1)


def check_heads(width: int, heads: int) -> None:
    """Raise EncoderError for a width that the heads cannot share."""
    if heads < 1 or width < 1 or width % heads:
        raise EncoderError(f"width {width} must be a multiple of the heads, {heads}")


def check_tokens(tokens: str) -> None:
    """Raise EncoderError for something else than the two choices."""
    if tokens not in ("all", "patches"):
        raise EncoderError(f"tokens must be 'all' or 'patches', got {tokens!r}")


def _grid(size: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    return tuple(side // patch for side, patch in zip(size, patch_size, strict=True))
