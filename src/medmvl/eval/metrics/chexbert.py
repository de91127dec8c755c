"""CheXbert (Smit et al. 2020): 14 observations read from both chest X-ray reports, and compared.

Labels as in the package f1chexbert: an observation counts as there if CheXbert calls it positive or uncertain. An
empty answer states nothing: it has no labels, accuracy 0 and similarity 0, whatever CheXbert makes of an empty text.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.eval.metrics.labeler import Labeler, load
from medmvl.eval.metrics.labels import Bools, macro_f1, micro_f1
from medmvl.eval.metrics.local import checkpoint_state, device_of, given
from medmvl.eval.metrics.metric import Answers, Family, Floats, Mean, Statistics

OBSERVATIONS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
_FIVE = [
    OBSERVATIONS.index(name) for name in ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
]
_POSITIVE, _UNCERTAIN = 1, 3  # classes of a head: not mentioned, positive, negative, uncertain
_HEADS = {f"linear_heads.{i}": 2 if name == "No Finding" else 4 for i, name in enumerate(OBSERVATIONS)}


def _measure(
    answers: Answers,
    checkpoint: str | None = None,
    bert: str | None = None,
    batch_size: int = 32,
    device: str | None = None,
) -> Mapping[str, Statistics]:
    file = given(checkpoint, "checkpoint", "chexbert_f1_micro14", "CheXbert's weights, chexbert.pth")
    folder = given(bert, "bert", "chexbert_f1_micro14", "a folder with bert-base-uncased's config and tokenizer")
    labeler = _load(file, folder, device_of(device))
    (said, saw), (true, seen) = (_read(labeler, texts, batch_size) for texts in answers.texts())
    return {
        "chexbert_f1_micro14": micro_f1(said, true),
        "chexbert_f1_macro14": macro_f1(said, true),
        "chexbert_f1_micro5": micro_f1(said[:, _FIVE], true[:, _FIVE]),
        "chexbert_f1_macro5": macro_f1(said[:, _FIVE], true[:, _FIVE]),
        "chexbert_accuracy5": Mean((said[:, _FIVE] == true[:, _FIVE]).all(axis=1) * _stated(saw)),
        "chexbert_similarity": Mean(_cosines(saw, seen)),
    }


CHEXBERT = Family(
    _measure,
    options={
        "checkpoint": "chexbert.pth as published",
        "bert": "folder with bert-base-uncased's config and tokenizer",
        "batch_size": "reports read at once; 32",
        "device": "torch device; the first GPU, else the CPU",
    },
)


@lru_cache(maxsize=1)
def _load(checkpoint: Path, bert: Path, device: Any) -> Labeler:
    return load(checkpoint_state(checkpoint, "checkpoint"), bert, "bert.", _HEADS, device)


def _read(labeler: Labeler, reports: list[str], batch_size: int) -> tuple[Bools, Floats]:
    """Return each report's labels [n, 14] and the vector of its first token [n, width]; those of an empty one are 0."""
    # As CheXbert cleans reports: line ends and runs of blanks are one blank.
    texts = [" ".join(report.split()) for report in reports]
    vectors = labeler.read(texts, batch_size)
    classes = np.stack([labeler.logits(vectors, head).argmax(axis=1) for head in _HEADS], axis=1)
    empty = np.array([not text for text in texts], dtype=bool)
    vectors[empty] = 0.0
    return ((classes == _POSITIVE) | (classes == _UNCERTAIN)) & ~empty[:, None], vectors


def _stated(vectors: Floats) -> Bools:
    """Tell which reports are not empty."""
    return vectors.any(axis=1)


def _cosines(a: Floats, b: Floats) -> Floats:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0)
