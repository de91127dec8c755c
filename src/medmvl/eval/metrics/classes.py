"""Short answers as classes: scores that give every class its say, however rare it is."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medmvl.eval.metrics.metric import Answers, Family, Floats, Sums
from medmvl.eval.metrics.text import normalise

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def _measure(answers: Answers) -> dict[str, Sums]:
    """Count per class, of which there is one for each true answer after `normalise`.

    An answer that is none of the classes, or that could not be read, is wrong: it is missing from the recall of its
    true class, and is no false alarm of any other. A resample has the classes of its own true answers. All equal
    scikit-learn's `balanced_accuracy_score` and `f1_score` with these classes as `labels`.
    """
    given, wanted = ([normalise(text) for text in texts] for texts in answers.texts())
    classes = {name: place for place, name in enumerate(dict.fromkeys(wanted))}
    truth = np.array([classes[name] for name in wanted], dtype=np.intp)
    said = np.array([classes.get(name, -1) for name in given], dtype=np.intp)
    rows = _rows(truth, said, len(classes))

    def score(average: Callable[[Floats, Floats, Floats], Floats]) -> Sums:
        return Sums(rows, lambda sums: average(*np.split(sums, 3, axis=1)))

    return {
        "balanced_accuracy": score(_balanced_accuracy),
        "macro_f1": score(_macro_f1),
        "micro_f1": score(_micro_f1),
        "weighted_f1": score(_weighted_f1),
    }


def _rows(truth: NDArray[np.intp], said: NDArray[np.intp], classes: int) -> "csr_array":
    """Return what is summed, [n, 3 * classes]: the true class, the class that was said, the class if it was both.

    Sparse, for a sample has at most three entries, while open questions have thousands of classes.
    """
    from scipy.sparse import csr_array

    samples = np.arange(len(truth))
    known, hit = said >= 0, said == truth
    places = np.concatenate([samples, samples[known], samples[hit]])
    columns = np.concatenate([truth, classes + said[known], 2 * classes + truth[hit]])
    return csr_array((np.ones(len(places)), (places, columns)), shape=(len(truth), 3 * classes))


def _balanced_accuracy(true: Floats, said: Floats, hit: Floats) -> Floats:
    """Return the mean recall of the classes, counts [R, classes] -> [R]."""
    return (hit / np.maximum(true, 1)).sum(axis=1) / (true > 0).sum(axis=1)


def _f1(true: Floats, said: Floats, hit: Floats) -> Floats:
    return 2 * hit / np.maximum(true + said, 1)


def _macro_f1(true: Floats, said: Floats, hit: Floats) -> Floats:
    """Return the mean F1 of the classes."""
    return _f1(true, said, hit).sum(axis=1) / (true > 0).sum(axis=1)


def _micro_f1(true: Floats, said: Floats, hit: Floats) -> Floats:
    """Return the F1 of all classes' counts together: accuracy, where every answer is one of the classes."""
    return 2 * hit.sum(axis=1) / (true + said * (true > 0)).sum(axis=1)


def _weighted_f1(true: Floats, said: Floats, hit: Floats) -> Floats:
    """Return the mean F1 of the classes, each as heavy as it is frequent."""
    return (_f1(true, said, hit) * true).sum(axis=1) / true.sum(axis=1)


CLASSES = Family(_measure)
