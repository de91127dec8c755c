"""Lists of findings, "effusion, nodule": which labels do answer and reference name?"""

import re

import numpy as np

from medmvl.eval.metrics.labels import macro_f1, micro_f1
from medmvl.eval.metrics.metric import Answers, Family, Mean, Statistics
from medmvl.eval.metrics.text import normalise

_BETWEEN = re.compile(r"[,;\n]")


def items(text: str) -> frozenset[str]:
    """Return the items of a list, compared as `normalise` leaves them; commas, semicolons and line ends part them."""
    return frozenset(filter(None, map(normalise, _BETWEEN.split(text))))


def _measure(answers: Answers) -> dict[str, Statistics]:
    """Compare sets of labels; the labels are the items of all true answers, "no finding" among them.

    Whatever else an answer names is one further label that no true answer has: a false alarm for the micro F1 and the
    exact sets; the macro F1 is the mean of the true labels alone.
    """
    said, true = ([items(text) for text in side] for side in answers.texts())
    labels = {name: place for place, name in enumerate(sorted(frozenset().union(*true)))}
    tables = np.zeros((2, len(true), len(labels) + 1), dtype=bool)
    for table, sets in zip(tables, (said, true), strict=True):
        for row, names in zip(table, sets, strict=True):
            row[[labels.get(name, len(labels)) for name in names]] = True
    return {
        "listed_f1_micro": micro_f1(*tables),
        "listed_f1_macro": macro_f1(*tables[:, :, :-1]),
        "listed_exact": Mean(np.array([s == t for s, t in zip(said, true, strict=True)], dtype=np.float64)),
    }


LISTED = Family(_measure)
