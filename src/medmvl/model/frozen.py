"""Encoders that do not learn: what their features depend on, and computing them apart from the model."""

from __future__ import annotations

import hashlib
import json
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from medmvl.model import tune
from medmvl.model.config import ModelConfig
from medmvl.model.vlm import VLM

_TOKENS_AT_ONCE, _MEDIA_AT_ONCE = 8192, 64
_ABOUT_MEDIA = {"connector", "connector_options", "placeholder"}  # settings of a tower that are not its encoder's


def why_not(model: VLM, tower: str) -> str | None:
    """Return why the same medium may get other features later, None where it always gets the same.

    Args:
        model: tuned for the stage.
        tower: name of the tower.
    """
    if getattr(model.towers[tower].encoder, "reads_text", False):
        return "its encoder reads the question"
    if any(parameter.requires_grad for _, encoder in _used(model, tower) for parameter in encoder.parameters()):
        return "its encoder learns"
    return None


def fingerprint(model: VLM, config: ModelConfig, tower: str, precision: str) -> str:
    """Return a hash of all that a tower's features depend on beside the medium: how it is fed, layer, code, weights.

    Of the weights those count that the feature depends on (`reachable`), all buffers, and adapters.

    Args:
        model: on any device, spread over no processes.
        config: what it is made of; of the tower all but the connector.
        tower: name of the tower.
        precision: that features are computed in, "fp32" or "bf16".
    """
    adapters = tune.adapters(model)
    digest = hashlib.sha256(precision.encode())
    for name, encoder in _used(model, tower):
        settings = config.towers[name].model_dump(mode="json", exclude=_ABOUT_MEDIA)
        adapted = [{k: v for k, v in kind.items() if k != "dropout"} for kind in adapters.get(f"{name}.encoder", [])]
        kind = f"{type(encoder).__module__}.{type(encoder).__qualname__}"
        spec = encoder.spec.model_dump(mode="json")
        digest.update(json.dumps([kind, spec, settings, adapted], sort_keys=True).encode())
        for key, tensor in (*tune.reached(encoder), *encoder.named_buffers()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class FrozenEncoder:
    """A context in which a tower's encoder computes features on a device; afterwards it is back where it was.

    Args:
        model: on the CPU, spread over no processes.
        tower: name of the tower.
        device: where to compute.
        precision: "fp32", or "bf16" for autocast.

    Attributes:
        at_once: media that are worth computing together.
    """

    def __init__(self, model: VLM, tower: str, device: torch.device, precision: str) -> None:
        self.encoder: nn.Module = model.towers[tower].encoder
        self._modules = [encoder for _, encoder in _used(model, tower)]
        self._device, self._precision = device, precision
        self.at_once = min(_MEDIA_AT_ONCE, max(1, _TOKENS_AT_ONCE // self.encoder.num_tokens))

    def __enter__(self) -> FrozenEncoder:
        for module in self._modules:
            module.to(self._device).eval()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module in self._modules:
            module.to("cpu")

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> np.ndarray:
        """Return the features [M, tokens, width] of prepared pixels [M, C, ...], as they are kept.

        float32 for the precision fp32, so that what is learned from them is the same to the bit. float16 for bf16,
        which has fewer digits; float32 where float16 does not reach as far.
        """
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            features = self.encoder(pixels.to(self._device))
        features = features.float().cpu()
        if self._precision == "bf16" and torch.isfinite(half := features.half()).all():
            features = half
        return features.numpy()


def feature_bytes(encoder: nn.Module, precision: str) -> int:
    """Return the bytes that the features of a medium take."""
    return encoder.num_tokens * encoder.width * (4 if precision == "fp32" else 2)


def _used(model: VLM, tower: str) -> list[tuple[str, nn.Module]]:
    """Return the encoder that a tower runs, and the one of another tower that it uses, by tower."""
    encoder = model.towers[tower].encoder
    lender = (getattr(encoder, "shares", None) or "").removesuffix(".encoder")
    return [(tower, encoder), *([(lender, model.towers[lender].encoder)] if lender else [])]
