"""A 3D encoder beside a 2D encoder over the slices, and a text encoder that reads the question (Med-2E3)."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from medmvl.core.lookup import choices_text
from medmvl.imaging.spec import VisionSpec
from medmvl.model.config import TextModel, TowerConfig
from medmvl.model.connectors import DualGrid, DualTokens, DualWidth
from medmvl.model.encoders.base import Context, Encoder, EncoderError, checked, recompute
from medmvl.model.encoders.table import build_encoder
from medmvl.model.encoders.text import TextEncoder

_BRANCH = ("encoder", "encoder_options", "layer", "tokens", "spec")
_SLICES = ("slices", "chunk")


class Dual(Encoder):
    """Two views of one prepared volume, `.volume` (3D) and `.slices` (2D, slice by slice), and `.text`.

    The volume is prepared as the 3D encoder wants it, and each volume is encoded once, however many questions are asked
    about it. The slices get the same pixels; where their spec names another mean and std, these are applied to them.

    Args:
        volume: settings of the 3D encoder: `encoder`, `encoder_options`, `layer`, `tokens` ("patches" by default),
            `spec`.
        slices: settings of the 2D encoder: the same, and `chunk` and `slices` as of the encoder `slices`. Its `spec`
            may set mean and std only; Med-2E3 fed SigLIP pixels in 0..1: {mean: [0.0], std: [1.0]}.
        text: a folder or hub name of a text encoder with its tokenizer, or {"architecture": ..., "tokenizer": ...}.
        layer, tokens: of the tower; the branches have their own, so these stay as they are.
        spec: fields of the volume's VisionSpec to set otherwise than the 3D encoder's.
        context: how it is being built.

    Raises:
        EncoderError: settings of a branch that do not fit it or the other.
    """

    reads_text = True
    supports_gradient_checkpointing = True
    grid: DualGrid  # type: ignore[assignment]  # of both branches; connectors other than `text_guided` refuse it
    width: DualWidth  # type: ignore[assignment]

    def __init__(
        self,
        volume: Mapping[str, Any],
        slices: Mapping[str, Any],
        text: str | Mapping[str, Any],
        layer: int = -1,
        tokens: str = "all",
        spec: Mapping[str, Any] | None = None,
        context: Context | None = None,
    ) -> None:
        super().__init__()
        if layer != -1 or tokens != "all":
            raise EncoderError("the branches of 'dual' have `layer` and `tokens` of their own; set them in its options")
        context = context or Context()
        self.volume_config = _volume_config(volume, spec)
        self.volume = build_encoder(self.volume_config, context.weights, where="its 3D encoder")
        _check(self.volume)
        self.spec = self.volume.spec
        self.slices_config = _slices_config(slices, self.spec)
        self.slices = build_encoder(self.slices_config, context.weights, where="its 2D encoder", image=context.image)
        self.shares = self.slices.shares
        _check(self.volume, self.slices)
        self._scale, self._shift = _rescaling(self.spec, self.slices.spec)
        self.text_config = checked("text", TextModel, {"path": text} if isinstance(text, str) else text)
        self.text = TextEncoder(self.text_config, context.weights)
        depth, *inside = self.slices.grid
        self.grid = DualGrid(self.volume.grid, (depth, math.prod(inside)))
        self.width = DualWidth(self.volume.width, self.slices.width, self.text.width)

    @property
    def num_tokens(self) -> int:
        """Tokens of both branches."""
        return self.volume.num_tokens + self.slices.num_tokens

    @property
    def token_grid(self) -> DualGrid:  # type: ignore[override]
        """The grids that the connector sees."""
        return self.grid

    def reachable(self) -> frozenset[str]:
        branches = {"volume": self.volume, "slices": self.slices, "text": self.text}
        return frozenset(f"{name}.{inside}" for name, branch in branches.items() for inside in branch.reachable())

    def forward(self, pixels: Tensor, question: Tensor, mask: Tensor, source: Tensor) -> DualTokens:  # type: ignore[override]
        """Return the tokens of volumes [U, C, D, H, W] and the vectors of M questions about them.

        Args:
            pixels: prepared to `spec`.
            question: long [M, L], ids of the text encoder's own tokenizer.
            mask: long [M, L], 1 on ids and 0 on padding.
            source: long [M], the volume that each question is about.
        """
        seen = pixels if (self._scale, self._shift) == (1.0, 0.0) else pixels * self._scale + self._shift
        return DualTokens(self.volume(pixels), self.slices(seen), self.text(question, mask), source)

    def activation_checkpointing_enable(self, options: Mapping[str, Any]) -> None:
        """Recompute activations of every branch that can in the backward pass."""
        for branch in (self.volume, self.slices, self.text):
            recompute(branch, options)

    def self_contained(self, config: TowerConfig) -> TowerConfig:
        volume = self.volume.self_contained(self.volume_config)
        slices = self.slices.self_contained(self.slices_config)
        own = self.slices.spec
        options = {
            "volume": volume.model_dump(mode="json", include={*_BRANCH}, exclude_none=True),
            "slices": {
                **slices.encoder_options,
                **slices.model_dump(mode="json", include={"layer", "tokens"}),
                "spec": {"mean": list(own.mean), "std": list(own.std)},
            },
            "text": self.text.self_contained(),
        }
        return super().self_contained(config).model_copy(update={"encoder_options": options})


def _settings(name: str, given: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of a branch, class tokens dropped by default."""
    if not isinstance(given, Mapping) or "encoder" not in given:
        raise EncoderError(f"{name}: a branch of 'dual' is a mapping with the key 'encoder', got {given!r}")
    for key in given:
        if key not in known:
            raise EncoderError(f"{name}: unknown key {key!r}; {choices_text(key, known, 'keys')}")
    own = given.get("encoder_options")
    if isinstance(own, Mapping) and "tokens" in own:
        return dict(given)
    return {"tokens": "patches", **given}


def _volume_config(given: Mapping[str, Any], spec: Mapping[str, Any] | None) -> TowerConfig:
    settings = _settings("volume", given, _BRANCH)
    changes = {**(settings.get("spec") or {}), **(spec or {})}
    return checked("volume", TowerConfig, {**settings, "spec": changes or None})


def _slices_config(given: Mapping[str, Any], shared: VisionSpec) -> TowerConfig:
    """Return the settings of `slices` over the volume that the 3D encoder takes."""
    settings = _settings("slices", given, (*_BRANCH, *_SLICES))
    spec = settings.pop("spec", None) or {}
    for key in spec:
        if key not in ("mean", "std"):
            raise EncoderError(
                f"slices: its spec may set 'mean' and 'std' only, not {key!r}, for both branches see the same prepared "
                "volume; set it in the tower's spec"
            )
    options = {key: settings.pop(key) for key in ("encoder", "encoder_options", *_SLICES) if key in settings}
    whole = {**settings, "encoder": "slices", "encoder_options": options, "spec": {**spec, "size": list(shared.size)}}
    return checked("slices", TowerConfig, whole)


def _check(volume: Encoder, slices: Encoder | None = None) -> None:
    """Refuse branches whose tokens form no grid, or which cannot share one volume."""
    if not volume.spec.is_volume or volume.spec.channels != 1:
        raise EncoderError(
            f"volume: 'dual' needs a 3D encoder of one channel; this one takes size {volume.spec.size}, "
            f"{volume.spec.channels} channels"
        )
    for name, branch in (("volume", volume), ("slices", slices)):
        if branch is not None and branch.class_tokens:
            raise EncoderError(f"{name}: 'dual' takes patch tokens alone; choose `tokens: patches` for this branch")


def _rescaling(have: VisionSpec, want: VisionSpec) -> tuple[float, float]:
    """Return scale and shift from pixels prepared with one mean and std to those of another."""
    ratio = want.rescale / have.rescale
    scale = have.std[0] * ratio / want.std[0]
    return scale, (have.mean[0] * ratio - want.mean[0]) / want.std[0]
