"""Any 2D encoder over the slices of a volume."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medmvl.imaging.spec import VisionSpec
from medmvl.model.config import TowerConfig
from medmvl.model.encoders.base import Context, Encoder, EncoderError, Lent, changed, checked, recompute
from medmvl.model.encoders.table import build_encoder

SLICES = 32
SHARED = "image"
"""As the 2D encoder: the one of the image tower, the same weights."""


class Slices(Encoder):
    """A 2D encoder of the house sees every slice of a volume by itself: tokens (slice, row, column).

    Slices are fed in the order of the spec's first axis. An encoder of three channels sees its one channel three
    times. Where it wants each channel normalised otherwise (CLIP), that is done here, after the spec's own mean and
    std; else its mean and std are the spec's.

    An encoder shared with the image tower belongs to that tower: this one has no weights, neither to learn nor to save.

    Args:
        encoder: what a tower's `encoder` may be: a folder, hub name, {"architecture": ...}, table name, dotted path; or
            "image" for the image tower's own.
        encoder_options: of the 2D encoder; `spec` among them changes how it wants its pictures.
        slices: slices of a volume; by default the spec's depth, or 32.
        chunk: slices of each volume that go through the encoder at once. A call sees `chunk` slices of every volume in
            the row, so memory is bounded by chunk times the volumes of a row, which `run.row_tokens` bounds. The number
            of calls depends on slices and chunk alone, as sharding (FSDP2, ZeRO-3) needs it.
        layer: of the 2D encoder, as in its own options; a shared one keeps the image tower's.
        tokens: "patches" drops its class tokens. With "all", those of all slices stand in front of all patch tokens,
            so that the tokens form no grid.
        spec: fields of the volume's VisionSpec to set otherwise than: `slices` times the 2D encoder's size, one
            channel, stretched. Its height and width are the 2D encoder's too.
        context: how it is being built.

    Raises:
        EncoderError: an inner encoder that is not 2D, or a size, number of slices or chunk that does not fit.
    """

    supports_gradient_checkpointing = True

    def __init__(
        self,
        encoder: str | Mapping[str, Any],
        encoder_options: Mapping[str, Any] | None = None,
        slices: int | None = None,
        chunk: int = 32,
        layer: int = -1,
        tokens: str = "all",
        spec: Mapping[str, Any] | None = None,
        context: Context | None = None,
    ) -> None:
        super().__init__()
        context = context or Context()
        size = _size(slices, spec)
        _check_count("chunk", chunk)
        self.chunk = chunk
        self._recompute: dict[str, Any] | None = None
        if encoder in (SHARED, {"path": SHARED}):
            lent = _lent(context, encoder_options, layer)
            # Within a tuple torch does not see it, so its weights count once: in the image tower.
            self._shared: tuple[Encoder, ...] = (lent.encoder,)
            self.inner_config, self.shares = lent.config, "image.encoder"
        else:
            self._shared = ()
            self.inner_config = _inner(encoder, encoder_options, layer, tokens, size[1:])
            self.inner = build_encoder(self.inner_config, context.weights, where="its 2D encoder")
        self._set_shape(size[0], tokens, spec)

    @property
    def slice_encoder(self) -> Encoder:
        """The 2D encoder: its own, or the image tower's."""
        return self._shared[0] if self._shared else self.inner

    def _set_shape(self, slices: int, tokens: str, spec: Mapping[str, Any] | None) -> None:
        inner = self.slice_encoder
        if inner.spec.is_volume:
            raise EncoderError(
                f"'slices' needs a 2D encoder, and {self.inner_config.encoder.label!r} takes volumes of "
                f"{inner.spec.size}; name it as the tower's encoder itself"
            )
        equal = len({*inner.spec.mean}) == 1 and len({*inner.spec.std}) == 1
        base = VisionSpec(
            size=(slices, *inner.spec.size),
            channels=1,
            mean=inner.spec.mean[:1] if equal else (0.0,),
            std=inner.spec.std[:1] if equal else (1.0,),
            rescale=inner.spec.rescale,
            resample="bilinear",
        )
        self.spec = changed(base, spec)
        if self.spec.size[1:] != inner.spec.size or self.spec.channels != 1:
            raise EncoderError(
                f"'slices' takes volumes of one channel with slices of {inner.spec.size}, as "
                f"{'the image tower' if self._shared else 'its 2D encoder'} does; "
                f"the spec says size {self.spec.size}, {self.spec.channels} channels"
            )
        self._normalise = None if equal else (inner.spec.mean, inner.spec.std)
        self.grid, self.width = (slices, *inner.grid), inner.width
        self._per_slice = inner.class_tokens if tokens == "all" else 0
        self.class_tokens = slices * self._per_slice

    def reachable(self) -> frozenset[str]:
        return frozenset() if self._shared else frozenset(f"inner.{name}" for name in self.inner.reachable())

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the tokens [B, num_tokens, width] of volumes [B, 1, D, H, W] prepared to `spec`."""
        chunks = pixels[:, 0].split(self.chunk, dim=1)
        if self._recompute is None or not torch.is_grad_enabled():
            found = [self._encode(part) for part in chunks]
        else:
            found = [checkpoint(self._encode, part, **self._recompute) for part in chunks]
        tokens = torch.cat(found, dim=1) if len(found) > 1 else found[0]
        cut = self._per_slice
        if not cut:
            return tokens.flatten(1, 2)
        return torch.cat([tokens[:, :, :cut].flatten(1, 2), tokens[:, :, cut:].flatten(1, 2)], dim=1)

    def _encode(self, slices: Tensor) -> Tensor:
        """Return the tokens [B, S, T, width] of slices [B, S, H, W]."""
        inner = self.slice_encoder
        pictures = slices.flatten(0, 1)[:, None].expand(-1, inner.spec.channels, -1, -1)
        if self._normalise is not None:
            mean, std = (pictures.new_tensor(values)[:, None, None] for values in self._normalise)
            pictures = (pictures - mean) / std
        tokens = inner(pictures).unflatten(0, slices.shape[:2])
        return tokens if self._per_slice else tokens[:, :, inner.class_tokens :]

    def activation_checkpointing_enable(self, options: Mapping[str, Any]) -> None:
        """Recompute activations in the backward pass: layer by layer where the 2D encoder can, else chunk by chunk."""
        if not recompute(self.slice_encoder, options):
            self._recompute = dict(options)

    def self_contained(self, config: TowerConfig) -> TowerConfig:
        if self._shared:
            return super().self_contained(config).model_copy(update={"layer": self.inner_config.layer})
        inner = self.inner.self_contained(self.inner_config)
        options = {
            **config.encoder_options,
            "encoder": inner.encoder.model_dump(exclude_none=True),
            "encoder_options": {**inner.encoder_options, **inner.model_dump(include={"layer", "tokens", "spec"})},
        }
        own = {"encoder_options": options, "layer": self.inner_config.layer}
        return super().self_contained(config).model_copy(update=own)


def _size(slices: int | None, spec: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Return (slices, height, width) as far as they are stated: (slices,) without a size in the spec."""
    stated = (spec or {}).get("size")
    if stated is None:
        count: tuple[int, ...] = (SLICES if slices is None else slices,)
    elif isinstance(stated, Sequence) and len(stated) == 3:
        count = tuple(stated)
    else:
        raise EncoderError(f"'slices' takes volumes: the spec's size must be [slices, height, width], got {stated!r}")
    if slices is not None and slices != count[0]:
        raise EncoderError(f"slices is {slices}, and the spec's size {list(count)} says {count[0]}; leave one out")
    _check_count("slices", count[0])
    return count


def _check_count(name: str, count: object) -> None:
    if not isinstance(count, int) or count < 1:
        raise EncoderError(f"{name} must be a whole number of at least 1, got {count!r}")


def _lent(context: Context, options: Mapping[str, Any] | None, layer: int) -> Lent:
    """Return the image tower's encoder and its settings."""
    if context.image is None:
        raise EncoderError(
            "encoder: image shares the encoder of the image tower, and this model has none; add the tower, or name a "
            "2D encoder here (a folder called 'image' is './image')"
        )
    if options:
        raise EncoderError(f"encoder: image takes no encoder_options ({', '.join(options)}); give them to image tower")
    if layer not in (-1, context.image.config.layer):
        raise EncoderError(
            f"layer {layer}: encoder: image shares the image tower's features, of layer {context.image.config.layer}; "
            "leave `layer` out, or give the volume tower an encoder of its own"
        )
    return context.image


def _inner(
    encoder: str | Mapping[str, Any],
    options: Mapping[str, Any] | None,
    layer: int,
    tokens: str,
    size: tuple[int, ...],
) -> TowerConfig:
    """Return the settings of the 2D encoder."""
    options = dict(options or {})
    spec = {**({"size": list(size)} if size else {}), **(options.pop("spec", None) or {})}
    own = {"layer": options.pop("layer", layer), "tokens": options.pop("tokens", tokens), "spec": spec or None}
    if layer not in (-1, own["layer"]):
        raise EncoderError(f"layer is {layer}, and the 2D encoder's options say {own['layer']}; leave one out")
    return checked("its 2D encoder", TowerConfig, {"encoder": encoder, "encoder_options": options, **own})
