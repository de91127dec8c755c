"""Abnormalities of chest CT: 18 labels read from both reports by CT-CLIP's RadBERT classifier, and compared.

CT-RATE's label tables were made by this classifier from the true reports. Here it reads the true report as it is given
to it, so a reference of findings alone may have fewer labels than the table, made from more of the report. A label
counts as there if its probability is at least 0.5. An empty answer has no labels.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.eval.metrics.labeler import Labeler, load
from medmvl.eval.metrics.labels import Bools, macro_f1, micro_f1, weighted_f1
from medmvl.eval.metrics.local import checkpoint_state, device_of, given
from medmvl.eval.metrics.metric import Answers, Family, Statistics

ABNORMALITIES = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)


def _measure(
    answers: Answers,
    checkpoint: str | None = None,
    bert: str | None = None,
    batch_size: int = 32,
    device: str | None = None,
) -> Mapping[str, Statistics]:
    file = given(checkpoint, "checkpoint", "ct_label_f1_macro18", "CT-RATE's RadBertClassifier.pth")
    folder = given(bert, "bert", "ct_label_f1_macro18", "a folder with RadBERT-RoBERTa-4m's config and tokenizer")
    labeler = _load(file, folder, device_of(device))
    said, true = (_labels(labeler, texts, batch_size) for texts in answers.texts())
    return {
        "ct_label_f1_micro18": micro_f1(said, true),
        "ct_label_f1_macro18": macro_f1(said, true),
        "ct_label_f1_weighted18": weighted_f1(said, true),
    }


CT_LABELS = Family(
    _measure,
    options={
        "checkpoint": "RadBertClassifier.pth as published with CT-RATE",
        "bert": "folder with RadBERT-RoBERTa-4m's config and tokenizer",
        "batch_size": "reports read at once; 32",
        "device": "torch device; the first GPU, else the CPU",
    },
)


@lru_cache(maxsize=1)
def _load(checkpoint: Path, bert: Path, device: Any) -> Labeler:
    state = checkpoint_state(checkpoint, "checkpoint")
    return load(state, bert, "model.", {"classifier": len(ABNORMALITIES)}, device, pooled=True)


def _labels(labeler: Labeler, reports: list[str], batch_size: int) -> Bools:
    """Return each report's labels [n, 18]."""
    logits = labeler.logits(labeler.read(reports, batch_size), "classifier")
    stated = np.array([bool(report.strip()) for report in reports], dtype=bool)
    return (logits >= 0) & stated[:, None]
