"""A text encoder of transformers beside an image encoder: a question becomes one vector."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from medmvl.model.config import TextModel, shipped_architecture
from medmvl.model.encoders import published
from medmvl.model.encoders.base import EncoderError
from medmvl.model.encoders.hf import architecture
from medmvl.model.source import check_weights, folder

M3D_CLIP = "m3d_clip"
"""A CLIP for volumes whose text half is a BERT of the usual dimensions, under `language_encoder.` in its weights."""
NAMES = published.Names(
    prefixes={
        "language_encoder.": r"vision_encoder\.|mm_(vision|language)_proj\.|logit_scale$",
        "vision3d_model.vision3d_encoder.language_encoder.": "",
    },
    ignored=r"embeddings\.position_ids$",
    files=("model.safetensors", "pytorch_model.bin"),  # pretrained_ViT.bin, beside them, is the other half alone
)
_WHERE = "text encoder"
LONGEST = 512
"""Longest text in tokens, even where a model has positions for more."""


class TextEncoder(nn.Module):
    """A transformers text model with a pooled output; the model itself is `.model`, its keys are transformers' own.

    Args:
        settings: a folder or hub name (for M3D-CLIP and other CLIPs their text half), or an architecture.
        weights: False builds random weights, and takes shipped architectures for hub names (the meta device).

    Attributes:
        width: of the vector.
        max_tokens: longest text.
        vocabulary: rows of the embedding table.

    Raises:
        EncoderError, SourceError: what is missing or is no such model, and what to do.
    """

    def __init__(self, settings: TextModel, weights: bool = True) -> None:
        super().__init__()
        fields, path = _fields(settings, weights)
        config = _config(fields, settings.label)
        self._reached = _reached(config, settings.label)
        inside_clip = fields.get("model_type") == M3D_CLIP
        read = weights and settings.path is not None
        self.model = _load(path, config, self._reached) if path and read and not inside_clip else _random(config)
        if read and inside_clip:
            published.load(self.model, str(settings.path), NAMES, "its text encoder")
        self.model.eval()
        self.width, self.vocabulary = int(config.hidden_size), int(config.vocab_size)
        self.max_tokens = min(LONGEST, getattr(config, "max_position_embeddings", LONGEST))

    def reachable(self) -> frozenset[str]:
        """Names of the parameters that the vector depends on."""
        return frozenset(f"model.{name}" for name in self._reached)

    def train(self, mode: bool = True) -> "TextEncoder":
        """Set training mode, but let an encoder that does not learn drop nothing out, whatever learns beside it."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return [M, width] of texts long [M, L], whose mask is 1 on ids and 0 on padding."""
        return self.model(input_ids=ids, attention_mask=mask).pooler_output

    def self_contained(self) -> dict[str, Any]:
        """Return the settings that build this encoder without reading a file."""
        return {"architecture": architecture(self.model.config)}


def _fields(settings: TextModel, weights: bool) -> tuple[Mapping[str, Any], Path | None]:
    """Return the fields of the config, and the folder it lies in."""
    if settings.architecture is not None:
        return settings.architecture, None
    name = str(settings.path)
    shipped = None if weights or Path(name).is_dir() else shipped_architecture(name)
    if shipped is not None:
        return shipped["config"], None
    path = folder(name, _WHERE)
    try:
        return json.loads((path / "config.json").read_text(encoding="utf-8")), path
    except (OSError, ValueError) as error:
        raise EncoderError(f"{_WHERE}: {path / 'config.json'} cannot be read ({error})") from error


def _config(fields: Mapping[str, Any], label: str) -> PretrainedConfig:
    """Return the config of the text model alone."""
    family, own = str(fields.get("model_type")), {key: value for key, value in fields.items() if key != "model_type"}
    if family == M3D_CLIP:
        family, own = "bert", {"vocab_size": own.get("vocab_size", 30522)}
    if family not in CONFIG_MAPPING:
        raise EncoderError(
            f"{_WHERE}: transformers has no model of type {family!r} ({label}); take a text encoder such as BERT. "
            "Models that bring their own code are never run"
        )
    try:
        config = AutoConfig.for_model(family, **own)
    except (ValueError, TypeError, StrictDataclassError) as error:
        told = str(error).splitlines()[0]
        raise EncoderError(f"{_WHERE}: transformers cannot read the config of {label!r} ({told})") from error
    return getattr(config, "text_config", config)


def _random(config: PretrainedConfig) -> PreTrainedModel:
    return AutoModel.from_config(config, dtype=torch.float32)


@torch.inference_mode(False)
@torch.enable_grad()
def _reached(config: PretrainedConfig, label: str) -> frozenset[str]:
    """Run the model once on the meta device, and follow the gradient of its vector back."""
    try:
        with torch.device("meta"):
            model = _random(config)
            ids = torch.ones(1, 2, dtype=torch.long)
        vector = model(input_ids=ids).pooler_output
    except (ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise EncoderError(
            f"{_WHERE}: {label!r} gives no pooled vector of a text ({str(error).splitlines()[0]}); "
            "take a text encoder such as BERT"
        ) from error
    vector.sum().backward()
    return frozenset(name for name, parameter in model.named_parameters() if parameter.grad is not None)


def _load(path: Path, config: PretrainedConfig, needed: frozenset[str]) -> PreTrainedModel:
    """Load float32 weights; refuse a checkpoint that lacks some the vector needs."""
    check_weights(path, _WHERE)
    try:
        model, info = AutoModel.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise EncoderError(f"{_WHERE}: the weights in {path} cannot be read: {str(error).splitlines()[0]}") from error
    if lacking := sorted(needed.intersection(info["missing_keys"])):
        raise EncoderError(f"{_WHERE}: {path} lacks {len(lacking)} of its weights: {', '.join(lacking[:3])}")
    return model
