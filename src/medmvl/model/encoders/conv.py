"""A small residual convolutional encoder for small images, quick to train from scratch on a CPU."""

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
    resolution. GroupNorm keeps every image independent of the others in its row. Maps are channels-last: some 1.5 to 3
    times as fast on a CPU. The four default stages hold 0.25 M parameters, and learn from about 1,000 images of 64 x 64
    per second and core.

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
        self.stem = _halve(in_channels, channels[0])
        self.stages = nn.Sequential(
            *_activate(channels[0]),
            _halve(channels[0], channels[1]),
            *_activate(channels[1]),
            _halve(channels[1], channels[2]),
            *(ResidualConv(width) for width in channels[3:]),
            _norm(self.width),
        )
        self.positions = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], self.width))

    def forward(self, pixels: Tensor) -> Tensor:
        # The layout is set behind the stem, for a single channel has none. Weights keep the default layout, which
        # sharding (FSDP2) insists on; the convolutions follow their input.
        maps = self.stem(self.as_weights(pixels)).contiguous(memory_format=torch.channels_last)
        return self.stages(maps).flatten(2).transpose(1, 2) + self.positions


class ResidualConv(nn.Module):
    """x + conv(relu(norm(x))), maps [B, C, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(*_activate(width), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def _halve(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=2, padding=1)


def _activate(width: int) -> tuple[nn.Module, nn.Module]:
    return _norm(width), nn.ReLU()


def _norm(width: int) -> nn.GroupNorm:
    groups = next(groups for groups in range(max(1, width // 16), 0, -1) if width % groups == 0)
    return nn.GroupNorm(groups, width)
