"""Assembles a vision-language model from its settings: LLM, encoders, connectors, tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from medmvl.model.config import TOWERS, ModelConfig, TextModel, TowerConfig
from medmvl.model.connectors import build_connector
from medmvl.model.encoders.base import Encoder, EncoderError, Lent
from medmvl.model.encoders.hf import architecture
from medmvl.model.encoders.table import build_encoder
from medmvl.model.llm import load_llm
from medmvl.model.source import SourceError, folder
from medmvl.model.vlm import VLM, Tower


class Built(NamedTuple):
    """What building gives.

    Attributes:
        model: in eval mode.
        tokenizer: the LLM's own; None on the meta device when it is not on this machine.
        config: the same settings, but naming no folder or hub any more: every architecture and spec is inside.
        questions: tower that reads the question -> the tokenizer of its text encoder; empty where the caller brought a
            tokenizer, None for one that is not on this machine (meta device).
    """

    model: VLM
    tokenizer: PreTrainedTokenizerBase | None
    config: ModelConfig
    questions: Mapping[str, PreTrainedTokenizerBase | None]


def build(
    config: ModelConfig,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Built:
    """Build a model; what has no weights yet (connectors, bare architectures) is drawn from torch's global generator.

    Args:
        config: what it is made of.
        device: where it goes. "meta" builds shapes only and reads no weights: of hub names whose dimensions ship,
            it needs no network.
        dtype: of all weights.
        tokenizer: to use instead of the one that the settings name; no others are loaded then.

    Raises:
        SourceError, EncoderError, ConnectorError, LookupNameError: what does not exist or does not fit, and what to do.
    """
    meta = torch.device(device).type == "meta"
    own, tokenizer = tokenizer is None, tokenizer or _tokenizer(config.llm, "llm", meta)
    llm = load_llm(config.llm.path or config.llm.architecture, dtype=dtype, device=device)
    width = llm.get_input_embeddings().embedding_dim
    # Towers are drawn on the CPU, whatever the device, so that a seed means the same weights everywhere.
    with torch.device("meta" if meta else "cpu"):
        towers = _towers(config.towers, width, meta)
    # The LLM has its dtype already; casting it again would round its rotary frequencies, which stay in fp32.
    model = VLM(llm, {name: tower.to(dtype=dtype) for name, tower in towers.items()}).to(device).eval()
    _align(model)
    read = {name: tower.encoder for name, tower in model.towers.items() if getattr(tower.encoder, "reads_text", False)}
    questions = {name: _text_tokenizer(name, encoder, meta) for name, encoder in read.items() if own}
    return Built(model, tokenizer, _self_contained(config, model), questions)


def _towers(configs: Mapping[str, TowerConfig], width: int, meta: bool) -> dict[str, Tower]:
    """Build the towers, the image tower first: others may share its encoder."""
    built: dict[str, Tower] = {}
    image: Lent | None = None
    for name in sorted(configs, key=lambda name: name != "image"):
        built[name] = _tower(name, configs[name], width, meta, image)
        image = Lent(built[name].encoder, configs[name]) if name == "image" else image
    return {name: built[name] for name in configs}


def _tower(name: str, config: TowerConfig, width: int, meta: bool, image: Lent | None) -> Tower:
    encoder = build_encoder(config, weights=not meta, where=f"encoder of tower {name!r}", image=image)
    if encoder.spec.is_volume != (name == "volume"):
        takes = "volumes" if encoder.spec.is_volume else "pictures"
        other = "put it inside the encoder 'slices'" if name == "volume" else "make it the tower 'volume'"
        raise EncoderError(
            f"encoder of tower {name!r}: {config.encoder.label!r} takes {takes} of size {encoder.spec.size}; {other}"
        )
    connector = build_connector(
        config.connector,
        encoder.token_grid,
        encoder.width,
        width,
        config.connector_options,
        where=f"connector of tower {name!r}",
    )
    return Tower(encoder, connector, config.placeholder or TOWERS[name])


def _tokenizer(config: TextModel, where: str, meta: bool) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer that the settings name; on the meta device only one that is already on this machine."""
    name = config.tokenizer or config.path
    if name is None:
        if meta:
            return None
        raise SourceError(
            f"{where}: an architecture brings no tokenizer; name a folder or hub name as `{where}.tokenizer`"
        )
    source = name if meta else folder(name, f"{where}.tokenizer")
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        if meta and not Path(name).is_dir():
            return None
        raise SourceError(
            f"{where}.tokenizer: {source} holds no tokenizer that transformers can read "
            f"({str(error).splitlines()[0]}); name another folder or hub name as `{where}.tokenizer`"
        ) from error


def _text_tokenizer(tower: str, encoder: Encoder, meta: bool) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a tower's text encoder."""
    where = f"towers.{tower}.encoder_options.text"
    tokenizer = _tokenizer(encoder.text_config, where, meta)
    if tokenizer is not None and len(tokenizer) > encoder.text.vocabulary:
        raise SourceError(
            f"{where}: its tokenizer knows {len(tokenizer)} tokens, but its weights {encoder.text.vocabulary}; "
            "name the tokenizer that the weights were trained with"
        )
    return tokenizer


def _align(model: VLM) -> None:
    """Move weights out of the file they were mapped from, to memory as torch allocates it.

    A safetensors file puts tensors at any multiple of 8 bytes, and kernels round differently there: a run that started
    from a file would not be bit-identical to the same run resumed from a checkpoint.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _self_contained(config: ModelConfig, model: VLM) -> ModelConfig:
    """Return the settings with every path replaced by the architecture that was found there."""
    towers = {name: model.towers[name].encoder.self_contained(tower) for name, tower in config.towers.items()}
    llm = config.llm.model_copy(
        update={"path": None, "tokenizer": None, "architecture": architecture(model.llm.config)}
    )
    return config.model_copy(update={"llm": llm, "towers": towers})
