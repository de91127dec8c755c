"""The contract of an encoder, as a base class."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.modeling_layers import GradientCheckpointingLayer

from medmvl.core.config import ConfigError, load
from medmvl.imaging.spec import VisionSpec
from medmvl.model.config import TowerConfig

Model = TypeVar("Model", bound=BaseModel)


class EncoderError(ValueError):
    """Weights, options or an input size that an encoder cannot work with."""


class Encoder(nn.Module):
    """Maps prepared pixels [B, C, H, W] to tokens [B, num_tokens, width].

    A subclass sets in its constructor:
        spec: how images must be prepared.
        grid: (h, w) of the patch tokens, row by row; (d, h, w) for volumes.
        width: channels of a token.
        class_tokens: tokens kept inside, in front of the patch tokens (0 when there are none or they are dropped).
        shares: the part whose weights it uses and does not hold ("image.encoder"); None for most.
        reads_text: whether `forward` takes the question too, as `processing.collate.questions_of` gives it. Such an
            encoder has `text`, its text encoder, and `text_config`, which names the tokenizer.
    """

    spec: VisionSpec
    grid: tuple[int, ...]
    width: int
    class_tokens: int = 0
    shares: str | None = None
    reads_text: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens per image or volume."""
        return math.prod(self.grid) + self.class_tokens

    @property
    def token_grid(self) -> tuple[int, ...]:
        """The grid a connector sees: `grid`, or (num_tokens,) when class tokens among them break it."""
        return (self.num_tokens,) if self.class_tokens else self.grid

    def reachable(self) -> frozenset[str]:
        """Names of the parameters that the feature depends on; all others can never get a gradient."""
        return frozenset(name for name, _ in self.named_parameters())

    def self_contained(self, config: TowerConfig) -> TowerConfig:
        """Return the settings that build this encoder without reading a file, given those it was built from."""
        return config.model_copy(update={"spec": self.spec.model_dump(mode="json")})

    def as_weights(self, pixels: Tensor) -> Tensor:
        """Return pixels in the precision of the weights; they are prepared in float32, whatever the model's own is."""
        return pixels.to(next(self.parameters()).dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the tokens [B, num_tokens, width] of pixels [B, C, H, W] prepared to `spec`."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Encoder":
        """Set training mode, but keep batch normalisation on its stored statistics.

        Batch statistics would mix the images of a row: the loss of a packed batch would differ from that of its
        samples one by one, and micro-batches of few images would spoil pre-trained statistics.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self


class Lent(NamedTuple):
    """An encoder that another tower may use too, and the settings it was built from."""

    encoder: Encoder
    config: TowerConfig


class Context(NamedTuple):
    """How an encoder is being built; one whose constructor has an argument `context` is given it.

    Attributes:
        weights: whether weights are read; False builds random ones (the meta device).
        image: the image tower's encoder, for those that can share it.
    """

    weights: bool = True
    image: Lent | None = None


def recompute(module: nn.Module, options: Mapping[str, Any]) -> bool:
    """Let the outermost module that can recompute its activations in the backward pass do so; say if there is one.

    Args:
        module: a part of a model.
        options: keywords of torch.utils.checkpoint.checkpoint.
    """
    for one in module.modules():
        if getattr(one, "supports_gradient_checkpointing", False):
            # the second is the older name, for transformers that do not know the first
            enable = getattr(one, "activation_checkpointing_enable", None) or one.gradient_checkpointing_enable
            enable(dict(options))
            return True
    return False


def recomputable(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of a part that can recompute their activations, outermost ones."""
    found: dict[str, nn.Module] = {}
    for name, block in module.named_modules():
        if isinstance(block, GradientCheckpointingLayer) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = block
    return list(found.values())


def default_normalisation(channels: int) -> dict[str, Any]:
    """Return channels, mean and std of a VisionSpec for weights that say nothing: 0..255 becomes -1..1."""
    return {"channels": channels, "mean": (0.5,) * channels, "std": (0.5,) * channels}


def changed(spec: VisionSpec, changes: Mapping[str, Any] | None) -> VisionSpec:
    """Return `spec` with some fields set otherwise.

    An `edge` that is not among the changes follows them: in proportion to a new size, so that a centre crop keeps
    showing the same part of the picture, and away with another fit.

    Raises:
        EncoderError: fields that a VisionSpec does not have, or that do not fit each other.
    """
    changes = changes or {}
    fields = {**spec.model_dump(), **changes}
    wanted = checked("spec", VisionSpec, fields if "edge" in changes else {**fields, "edge": None})
    if "edge" in changes or spec.edge is None or wanted.fit != "crop":
        return wanted
    share = min(wanted.size) / min(spec.size)
    edge = round(spec.edge * share) if isinstance(spec.edge, int) else tuple(round(e * share) for e in spec.edge)
    return wanted.model_copy(update={"edge": edge})


def checked(name: str, model: type[Model], fields: Mapping[str, Any]) -> Model:
    """Return settings that are given among an encoder's options.

    Args:
        name: what they are, for errors.
        model: of which kind.
        fields: as given.

    Raises:
        EncoderError: all that is wrong with them.
    """
    try:
        return load(model, fields)
    except ConfigError as error:
        raise EncoderError(f"{name}: {'; '.join(error.lines)}") from error
