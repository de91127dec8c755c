"""BERTScore (Zhang et al. 2020): tokens of two texts matched greedily by the cosine of their contextual embeddings.

As the package bert-score 0.3.13 computes it: each token of one text takes its best match among all tokens of the
other; precision is the mean over the prediction's tokens, recall over the reference's, F1 their harmonic mean. The two
special tokens around a text may be matched, but are not counted. A text without tokens of its own scores 0.
"""

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.eval.metrics.local import batches, device_of, given, reading, token_ids
from medmvl.eval.metrics.metric import Answers, Family, Floats, Mean, MetricUnavailable, Statistics

_BEST_LAYER = {
    ("bert", 12, 768, 30522): 9,  # bert-base-uncased
    ("bert", 24, 1024, 30522): 18,  # bert-large-uncased
    ("bert", 12, 768, 119547): 9,  # bert-base-multilingual-cased
    ("bert", 12, 768, 21128): 8,  # bert-base-chinese
    ("bert", 12, 768, 31090): 8,  # scibert uncased
    ("bert", 12, 768, 31116): 9,  # scibert cased
    ("distilbert", 6, 768, 30522): 5,  # distilbert-base-uncased
    ("roberta", 6, 768, 50265): 5,  # distilroberta-base
    ("roberta", 12, 768, 50265): 10,  # roberta-base
    ("roberta", 24, 1024, 50265): 17,  # roberta-large
    ("xlm-roberta", 12, 768, 250002): 9,  # xlm-roberta-base
    ("xlm-roberta", 24, 1024, 250002): 17,  # xlm-roberta-large
    ("deberta", 12, 768, 50265): 9,  # deberta-base
    ("deberta", 24, 1024, 50265): 16,  # deberta-large
    ("deberta", 48, 1024, 50265): 18,  # deberta-xlarge
    ("deberta-v2", 12, 768, 128100): 9,  # deberta-v3-base
    ("deberta-v2", 24, 1024, 128100): 12,  # deberta-v3-large
    ("mpnet", 12, 768, 30527): 8,  # mpnet-base
}
"""(model type, layers, width, vocabulary) -> the layer that agreed best with people on WMT16, as the package lists."""

_SPACE_FIRST = {"roberta", "gpt2"}  # the package puts a blank before the first word for their tokenizers
_POSITIONS_AFTER_PADDING = {
    "roberta",
    "xlm-roberta",
    "camembert",
    "longformer",
    "mpnet",
}  # two positions are no token's


@dataclass(frozen=True)
class _Encoder:
    """A text encoder cut behind the layer that is asked.

    Attributes:
        model: returns the layer's output as its last hidden state.
        tokenizer: its tokenizer.
        layer: blocks that run.
        longest: most tokens of a text.
        prefix: what is put before a text.
    """

    model: Any
    tokenizer: Any
    layer: int
    longest: int
    prefix: str


def _measure(
    answers: Answers,
    model: str | None = None,
    layer: int | None = None,
    idf: bool = False,
    baseline: str | None = None,
    batch_size: int = 64,
    device: str | None = None,
) -> Mapping[str, Statistics]:
    folder = given(model, "model", "bertscore_f1", "a folder with a transformers text encoder and its tokenizer")
    encoder = _load(folder, layer, str(device_of(device)))
    predictions, references = answers.texts()
    floor = np.zeros(3) if baseline is None else _baseline(baseline, encoder.layer)
    raw = _scores(encoder, predictions, references, idf, batch_size)
    scores = (raw - floor) / (1 - floor)
    return {f"bertscore_{name}": Mean(scores[:, i]) for i, name in enumerate(("precision", "recall", "f1"))}


BERTSCORE = Family(
    _measure,
    options={
        "model": "folder with a transformers text encoder and its tokenizer",
        "layer": "blocks that run; the published best one of known encoders, else all",
        "idf": "weigh tokens by how few references have them; false",
        "baseline": "file of the package's rescale_baseline folder for this model: scores are rescaled with it",
        "batch_size": "texts read at once; 64",
        "device": "torch device; the first GPU, else the CPU",
    },
)


@lru_cache(maxsize=1)
def _load(folder: Path, layer: int | None, device: str) -> _Encoder:
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    with reading(folder, "model"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        total = config.num_hidden_layers
        shape = (config.model_type, total, config.hidden_size, config.vocab_size)
        config.num_hidden_layers = _BEST_LAYER.get(shape, total) if layer is None else _checked(layer, total)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, info = AutoModel.from_pretrained(
            folder, config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    if lacking := sorted(name for name in info["missing_keys"] if "pooler" not in name):
        raise MetricUnavailable(f"option model: {folder} lacks {len(lacking)} weights: {', '.join(lacking[:3])}")
    if config.is_encoder_decoder:
        model = model.get_encoder()
    prefix = " " if config.model_type in _SPACE_FIRST else ""
    return _Encoder(model.eval().to(device), tokenizer, config.num_hidden_layers, _longest(tokenizer, config), prefix)


def _checked(layer: int, total: int) -> int:
    if not isinstance(layer, int) or not 0 <= layer <= total:
        raise MetricUnavailable(f"option layer={layer}: this model has layers 0 (its embeddings) to {total}")
    return layer


def _longest(tokenizer: Any, config: Any) -> int:
    """Return the most tokens of a text: what the tokenizer says, if the model has as many positions."""
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    spare = 2 if config.model_type in _POSITIONS_AFTER_PADDING else 0
    return int(min(tokenizer.model_max_length, positions - spare, 1_000_000))


def _baseline(path: str, layer: int) -> Floats:
    """Return precision, recall and F1 of unrelated texts at a layer, float64 [3]."""
    with given(path, "baseline", "bertscore_f1", "a file with the columns LAYER,P,R,F").open(newline="") as file:
        for row in csv.reader(file):
            if row[:1] == [str(layer)]:
                return np.array([float(value) for value in row[1:4]])
    raise MetricUnavailable(f"option baseline: {path} has no row of layer {layer}")


def _scores(
    encoder: _Encoder, predictions: Sequence[str], references: Sequence[str], idf: bool, batch_size: int
) -> Floats:
    """Return precision, recall and F1 of each pair, float64 [n, 3]."""
    names = sorted({text.strip() for text in (*predictions, *references)})
    rows = token_ids(encoder.tokenizer, ["", *(name and encoder.prefix + name for name in names)], encoder.longest)
    ids = dict(zip(names, rows[1:], strict=True))
    empty = {name for name in names if ids[name] == rows[0]}
    weight = _weights(encoder.tokenizer, [ids[text.strip()] for text in references] if idf else None)
    pairs = [(p.strip(), r.strip()) for p, r in zip(predictions, references, strict=True)]
    found = {pair: np.zeros(3) for pair in pairs}
    real = sorted(
        (pair for pair in found if not empty.intersection(pair)),
        key=lambda pair: (-max(len(ids[text]) for text in pair), pair),
    )
    for chunk, vectors in _embedded(encoder, real, ids, batch_size):
        for pair, score in zip(chunk, _match(chunk, vectors, ids, weight), strict=True):
            found[pair] = score
    return np.array([found[pair] for pair in pairs], dtype=np.float64).reshape(-1, 3)


def _weights(tokenizer: Any, references: Sequence[Sequence[int]] | None) -> Mapping[int, float]:
    """Return token id -> its weight: 1, special tokens 0; or the log of how few of the references have it."""
    if references is None:
        return defaultdict(lambda: 1.0, {tokenizer.sep_token_id: 0.0, tokenizer.cls_token_id: 0.0})
    counts = Counter(token for row in references for token in set(row))
    n = len(references)
    known = {token: math.log((n + 1) / (count + 1)) for token, count in counts.items()}
    return defaultdict(lambda: math.log(n + 1), known)


def _embedded(
    encoder: _Encoder, pairs: Sequence[tuple[str, str]], ids: Mapping[str, list[int]], size: int
) -> Iterator[tuple[Sequence[tuple[str, str]], dict[str, Any]]]:
    """Yield chunks of pairs with the unit vectors [T, width] of their texts.

    A text is read once, and forgotten after the last pair that has it, so that memory follows the chunk.
    """
    import torch

    chunks = [pairs[start : start + size] for start in range(0, len(pairs), max(size, 1))]
    last = {text: number for number, chunk in enumerate(chunks) for pair in chunk for text in pair}
    held: dict[str, Any] = {}
    for number, chunk in enumerate(chunks):
        new = sorted({text for pair in chunk for text in pair} - held.keys())
        rows = [ids[text] for text in new]
        for places, batch, mask in batches(rows, size, encoder.tokenizer.pad_token_id or 0):
            with torch.inference_mode():
                device = encoder.model.device
                hidden = encoder.model(input_ids=batch.to(device), attention_mask=mask.to(device)).last_hidden_state
            unit = hidden / hidden.norm(dim=-1, keepdim=True)
            held |= {new[place]: unit[line, : len(rows[place])].clone() for line, place in enumerate(places)}
        yield chunk, held
        held = {text: vectors for text, vectors in held.items() if last[text] > number}


def _match(
    chunk: Sequence[tuple[str, str]],
    vectors: Mapping[str, Any],
    ids: Mapping[str, list[int]],
    weight: Mapping[int, float],
) -> Floats:
    """Return precision, recall and F1 of each pair of texts, float64 [B, 3]."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    sides = list(zip(*chunk, strict=True))
    predictions, references = (pad_sequence([vectors[text] for text in side], batch_first=True) for side in sides)
    # A padded token is no vector at all: it is nobody's best match, and weighs nothing itself.
    cosines = torch.bmm(predictions, references.transpose(1, 2))
    cosines.masked_fill_((predictions == 0).all(2)[:, :, None] | (references == 0).all(2)[:, None, :], -torch.inf)
    precision, recall = (
        _means(cosines.amax(axis).double().cpu().numpy(), [[weight[token] for token in ids[text]] for text in side])
        for axis, side in zip((2, 1), sides, strict=True)
    )
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total != 0)
    return np.stack([precision, recall, f1], axis=1)


def _means(values: Floats, weights: Sequence[Sequence[float]]) -> Floats:
    """Return the weighted mean [B] of each row of values [B, T], cut to as many as have weights; 0 without weight."""
    found = np.zeros(len(values))
    for line, (row, own) in enumerate(zip(values, weights, strict=True)):
        if total := sum(own):
            found[line] = row[: len(own)] @ np.array(own) / total
    return found
