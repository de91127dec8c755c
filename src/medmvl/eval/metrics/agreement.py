"""How far several raters of the same things agree: exactly, by Cohen's weighted kappa, by Krippendorff's alpha.

Ratings are float64 [n, raters], n things rated; NaN where a rater gave none. All are `Statistics`, made of sums over
the things, so that any resample of these has its own agreement; NaN where there is nothing to compare.
"""

from itertools import combinations

import numpy as np

from medmvl.eval.metrics.metric import Floats, Statistics, Sums


def exact_agreement(ratings: Floats) -> Statistics:
    """Return the share of pairs of ratings of one thing that are equal."""
    pairs = list(combinations(range(ratings.shape[1]), 2))
    rows = np.zeros((len(ratings), 2))
    for a, b in pairs:
        both = ~np.isnan(ratings[:, [a, b]]).any(axis=1)
        rows += np.stack([both & (ratings[:, a] == ratings[:, b]), both], axis=1)
    return Sums(rows, lambda sums: _ratio(sums[:, 0], sums[:, 1]))


def kappa_quadratic(ratings: Floats) -> Statistics:
    """Return Cohen's kappa with quadratic weights (Cohen 1968), the mean over all pairs of raters.

    With weights (x - y)^2 both the observed and the expected disagreement follow from means of the two raters' numbers,
    of their squares and of their squared difference; things that one of the two left out do not count.
    """
    pairs = list(combinations(range(ratings.shape[1]), 2))
    parts = []
    for a, b in pairs:
        both = ~np.isnan(ratings[:, [a, b]]).any(axis=1)
        x, y = (np.where(both, ratings[:, rater], 0.0) for rater in (a, b))
        parts.append(np.stack([both, x, y, x**2 + y**2, (x - y) ** 2], axis=1))
    rows = np.concatenate(parts, axis=1) if parts else np.zeros((len(ratings), 0))

    def combine(sums: Floats) -> Floats:
        found = []
        for at in range(0, sums.shape[1], 5):
            n, x, y, squares, differences = sums[:, at : at + 5].T
            found.append(1 - _ratio(differences * n, squares * n - 2 * x * y))
        return np.mean(found, axis=0) if found else np.full(len(sums), np.nan)

    return Sums(rows, combine)


def alpha_interval(ratings: Floats) -> Statistics:
    """Return Krippendorff's alpha for numbers on an interval scale (Krippendorff 2011), for any number of raters.

    Things with fewer than two ratings do not count. 1 is agreement, 0 what chance gives.
    """
    known = ~np.isnan(ratings)
    count = known.sum(axis=1).astype(np.float64)
    values = np.where(known, ratings, 0.0)
    total, squares = values.sum(axis=1), (values**2).sum(axis=1)
    paired = count >= 2
    # Sum over pairs within a thing of squared differences, each pair in both orders, over the ratings less one.
    within = np.divide(2 * (count * squares - total**2), count - 1, out=np.zeros_like(count), where=paired)
    rows = np.stack([within, count, total, squares], axis=1) * paired[:, None]

    def combine(sums: Floats) -> Floats:
        observed, n, total, squares = sums.T
        return 1 - _ratio(observed * (n - 1), 2 * (n * squares - total**2))

    return Sums(rows, combine)


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return a quotient, NaN where nothing is below; what rounding leaves of nothing is nothing."""
    scale = np.maximum(np.abs(above), 1.0)
    return np.divide(above, below, out=np.full_like(above, np.nan), where=np.abs(below) > 1e-9 * scale)
