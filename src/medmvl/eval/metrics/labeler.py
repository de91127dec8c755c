"""Classifiers that label a report: a BERT-like encoder from the user's checkpoint, and heads on what it reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.eval.metrics.local import batches, reading, token_ids
from medmvl.eval.metrics.metric import Floats, MetricUnavailable

_LONGEST = 512  # tokens both published labelers read
_NO_WEIGHTS = ("embeddings.position_ids", "embeddings.token_type_ids")  # buffers that older transformers saved


@dataclass(frozen=True)
class Labeler:
    """A labeler read from disk.

    Attributes:
        encoder: the transformer.
        tokenizer: its tokenizer.
        heads: the checkpoint's remaining weights, name -> tensor.
        pooled: the heads read the pooler's output, not the first token's last hidden state.
    """

    encoder: Any
    tokenizer: Any
    heads: Mapping[str, Any]
    pooled: bool = False

    def read(self, texts: Sequence[str], batch_size: int) -> Floats:
        """Return what the heads read of each text, float64 [n, width]; a text that recurs is read once."""
        import torch

        unique = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        found = np.zeros((len(unique), self.encoder.config.hidden_size))
        rows = token_ids(self.tokenizer, list(unique), _LONGEST)
        for places, ids, mask in batches(rows, batch_size, self.tokenizer.pad_token_id):
            device = self.encoder.device
            with torch.inference_mode():
                out = self.encoder(input_ids=ids.to(device), attention_mask=mask.to(device))
            vectors = out.pooler_output if self.pooled else out.last_hidden_state[:, 0]
            found[places] = vectors.double().cpu().numpy()
        return found[[unique[text] for text in texts]]

    def logits(self, vectors: Floats, head: str) -> Floats:
        """Return the logits [n, classes] of a linear head."""
        weight, bias = (self.heads[f"{head}.{part}"].double().numpy() for part in ("weight", "bias"))
        return vectors @ weight.T + bias


def load(
    state: Mapping[str, Any], folder: Path, prefix: str, heads: Mapping[str, int], device: Any, pooled: bool = False
) -> Labeler:
    """Build a labeler from its checkpoint's weights, and from the folder of the encoder it was trained from.

    Args:
        state: the checkpoint's state dict.
        folder: config and tokenizer of the encoder; its own weights are not needed.
        prefix: of the encoder's weights in the state dict.
        heads: name of each linear head -> its number of classes.
        device: torch device of the encoder.
        pooled: see `Labeler`.

    Raises:
        MetricUnavailable: the folder cannot be read, or the weights are not of this layout.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    with reading(folder, "bert"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder = AutoModel.from_config(config, dtype=torch.float32)
    weights = {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix) and not name.endswith(_NO_WEIGHTS)
    }
    rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
    wanted = {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
    if wrong := sorted(wanted ^ rest.keys()) or [head for head, n in heads.items() if len(rest[f"{head}.bias"]) != n]:
        raise MetricUnavailable(f"option checkpoint: its heads are not those of this labeler: {', '.join(wrong[:3])}")
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        told = " ".join(str(error).split())[:300]
        raise MetricUnavailable(f"options checkpoint and bert do not belong together: {told}") from error
    return Labeler(encoder.eval().to(device), tokenizer, rest, pooled)
