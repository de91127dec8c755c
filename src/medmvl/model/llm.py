"""Loads any causal LM of transformers, from weights or from an architecture, with the attention that suits it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from medmvl.core.lookup import choices_text
from medmvl.model import attention
from medmvl.model.config import shipped_architecture
from medmvl.model.families import packable
from medmvl.model.source import SourceError, check_weights, folder

_WHERE = "llm"


def load_llm(
    source: str | Path | Mapping[str, Any], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> PreTrainedModel:
    """Return a causal LM in eval mode.

    Args:
        source: a folder or hub name with safetensors weights, or an architecture (a transformers config with its
            `model_type`), which gets random weights.
        dtype: of the weights; fp32 by default, for what is trained must be fp32.
        device: "meta" builds the shapes only, and needs no weights: of a hub name whose dimensions ship, no network.

    Raises:
        SourceError: `source` leads to no causal LM.
    """
    if not isinstance(source, Mapping):
        known = shipped_architecture(str(source)) if device == "meta" and not Path(source).is_dir() else None
        if known is not None:
            source = known["config"]
    config, path = _read_config(source)
    implementation = _attention_of(config)
    if path is not None and device != "meta":
        check_weights(path, _WHERE)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=implementation,
            use_safetensors=True,
            local_files_only=True,
        )
        return model.to(device).eval()
    # Drawn on the CPU, whatever the device, so that a seed means the same weights everywhere.
    with torch.device("meta" if device == "meta" else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=implementation)
    return model.to(device).eval()


def _read_config(source: str | Path | Mapping[str, Any]) -> tuple[PreTrainedConfig, Path | None]:
    path = None if isinstance(source, Mapping) else folder(str(source), _WHERE)
    if path is None:
        fields = dict(source)
        family = fields.pop("model_type", None)
        families = sorted(config.model_type for config in AutoModelForCausalLM._model_mapping)
        if family not in families:
            raise SourceError(
                f"{_WHERE}: unknown model_type {family!r}; {choices_text(str(family), families, 'model types')}"
            )
        config = AutoConfig.for_model(family, **fields)
    else:
        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise SourceError(f"{_WHERE}: {path} has no config of a model that transformers knows: {error}") from error
    if config.get_text_config(decoder=True) is not config or type(config) not in AutoModelForCausalLM._model_mapping:
        raise SourceError(
            f"{_WHERE}: {source if path else family} is a {config.model_type!r} model, which is no plain causal LM; "
            "give a language model of its own (for a multimodal checkpoint: its language part, saved alone)"
        )
    return config, path


def _attention_of(config: PreTrainedConfig) -> str:
    """Return the attention implementation: ours where rows can be packed, otherwise the family's own best."""
    if packable(config)[0]:
        return attention.NAME
    supports_sdpa = getattr(AutoModelForCausalLM._model_mapping[type(config)], "_supports_sdpa", False)
    return "sdpa" if supports_sdpa else "eager"
