"""A small residual convolutional encoder for small images, quick to train from scratch on a CPU."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medmvl.imaging.spec import VisionSpec
from medmvl.model.encoders.base import Encoder, EncoderError, changed, default_normalisation

STRIDE = 8


class ConvEncoder(Encoder):
    """3x3 convolutions down to an eighth of the side, GroupNorm, learned positions: 64 x 64 -> 8 x 8 tokens.

    The first three channels are stages that halve the side; each further one is a residual convolution at the last
    resolution. GroupNorm keeps every image independent of the others in its row. Channels-last convolutions run
    about three times as fast as the default layout on a CPU.

    Args:
        channels: at least three, equal from the third on; the last is the token width.
        image_size: side of the image in pixels, a multiple of 8.
        in_channels: 1 (grey) or 3.
        spec: fields of the VisionSpec to set otherwise than: image_size, stretched, mean and std 0.5.
        layer, tokens: the last layer is the only one, and there is no class token.

    Raises:
        EncoderError: channels, size or layer that do not fit.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 128),
        image_size: int = 64,
        in_channels: int = 1,
        layer: int = -1,
        tokens: str = "all",
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if layer != -1:
            raise EncoderError(f"'conv' gives its last layer only: layer must be -1, got {layer}")
        if len(channels) < 3 or min(channels) < 1 or len(set(channels[2:])) > 1:
            raise EncoderError(f"'conv' needs three or more channels, equal from the third on; got {list(channels)}")
        base = VisionSpec(size=(image_size, image_size), **default_normalisation(in_channels))
        self.spec = changed(base, spec)
        if any(side % STRIDE for side in self.spec.size) or self.spec.channels != in_channels:
            raise EncoderError(
                f"'conv' takes images whose sides are multiples of {STRIDE}, with {in_channels} channels; "
                f"the spec says size {self.spec.size}, {self.spec.channels} channels"
            )
        self.grid = (self.spec.size[0] // STRIDE, self.spec.size[1] // STRIDE)
        self.width = channels[-1]
        widths = (in_channels, *channels[:3])
        stages: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            stages += [nn.Conv2d(before, after, 3, stride=2, padding=1), *_normed(after)]
        stages[-2:] = [ResidualConv(width) for width in channels[3:]] + _normed(self.width)
        self.stages = nn.Sequential(*stages).to(memory_format=torch.channels_last)
        self.positions = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], self.width))

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.stages(self.as_weights(pixels).contiguous(memory_format=torch.channels_last))
        return maps.flatten(2).transpose(1, 2) + self.positions


class ResidualConv(nn.Module):
    """x + conv(relu(norm(x))), maps [B, C, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(*_normed(width), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def _normed(width: int) -> list[nn.Module]:
    groups = next(groups for groups in range(max(1, width // 16), 0, -1) if width % groups == 0)
    return [nn.GroupNorm(groups, width), nn.ReLU()]
