"""Lists of findings are sets of labels; F1 over them is scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from medmvl.eval.metrics.listed import items
from medmvl.eval.metrics.metric import Answers
from medmvl.eval.metrics.table import measure

NAMES = ["listed_f1_micro", "listed_f1_macro", "listed_exact"]
KNOWN = ["effusion", "nodule", "lung opacity", "no finding"]


def scores(predictions: list[str | None], references: list[str], weights: list[float] | None = None) -> list[float]:
    found, missing = measure(NAMES, Answers(predictions, references))
    assert not missing
    row = np.array([weights or [1.0] * len(references)])
    return [found[name].scores(row)[0] for name in NAMES]


def test_items() -> None:
    assert items(" Lung  opacity; effusion.,\nNodule, ") == {"lung opacity", "effusion", "nodule"}
    assert items(" , ") == frozenset()


def test_hand_checked() -> None:
    references = ["effusion, nodule", "no finding", "nodule"]
    predictions = ["Nodule, effusion.", "nodule, something else", None]
    # hits 2; false alarms: nodule and "something else"; misses: "no finding" and the last nodule
    # effusion 1, no finding 0, nodule 2 * 1 / (2 * 1 + 1 + 1)
    assert scores(predictions, references) == pytest.approx([2 * 2 / (2 * 2 + 2 + 2), (1 + 0 + 0.5) / 3, 1 / 3])


@given(st.lists(st.tuples(st.sets(st.sampled_from([*KNOWN, "else"])), st.sets(st.sampled_from(KNOWN), min_size=1)),
                min_size=1, max_size=12))  # fmt: skip
def test_f1_is_that_of_scikit_learn(pairs: list[tuple[set[str], set[str]]]) -> None:
    true = [sorted(wanted) for _, wanted in pairs]
    labels = sorted({name for names in true for name in names})
    tables = [
        np.array([[name in names for name in columns] for names in side])
        for side, columns in (([wanted for _, wanted in pairs], labels), ([said for said, _ in pairs], labels))
    ]
    micro, macro, exact = scores([", ".join(said) for said, _ in pairs], [", ".join(names) for names in true])
    each = [f1_score(*(table[:, place] for table in tables), zero_division=0) for place in range(len(labels))]
    assert macro == pytest.approx(np.mean(each))
    others = np.array([[bool(said - set(labels))] for said, _ in pairs])
    wide = [np.hstack([tables[0], np.zeros_like(others)]), np.hstack([tables[1], others])]
    assert micro == pytest.approx(f1_score(*wide, average="micro", zero_division=0))  # two labels at least
    assert exact == pytest.approx(np.mean([said == wanted for said, wanted in pairs]))
