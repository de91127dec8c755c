"""Metrics: seconds and memory to score many texts with all text metrics, with intervals from 1,000 resamples.

python bench/bench_metrics.py            # 100,000 short answers, then 10,000 reports; add --detail for each family
"""

import argparse
import platform
import random
import resource
import time
from collections.abc import Iterator
from datetime import date
from itertools import accumulate

import numpy as np

from medmvl.eval.metrics.metric import Answers
from medmvl.eval.metrics.table import METRICS, measure
from medmvl.eval.stats import bootstrap

ROOMS = ("accuracy", "overlap", "bleu", "rouge", "meteor", "cider", "chrf", "captions")
NAMES = [name for name, where in METRICS.items() if where.split(":")[0].rsplit(".", 1)[1] in ROOMS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=100_000, help="short answers, of 1 to 8 words")
    parser.add_argument("--reports", type=int, default=10_000, help="reports, of 60 words")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--detail", action="store_true", help="time each family of metrics alone as well")
    chosen = parser.parse_args()
    print(f"{date.today()}, {platform.machine()}, {platform.system()}, Python {platform.python_version()}")
    draw = random.Random(0)
    for kind, count, lengths in (("answers", chosen.answers, range(1, 9)), ("reports", chosen.reports, (60,))):
        if count:
            answers = Answers(*zip(*pairs(draw, count, lengths), strict=True))
            patients = [number // 5 for number in range(count)]
            score(f"{count:,} {kind}", answers, patients, chosen.resamples, chosen.detail)


def pairs(draw: random.Random, count: int, lengths: range | tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """Yield a reference, its words drawn as often as words of a language are (Zipf), and a changed copy of it."""
    words = [spell(draw) for _ in range(5000)]
    often = list(accumulate(1 / place for place in range(1, len(words) + 1)))
    for _ in range(count):
        reference = draw.choices(words, cum_weights=often, k=draw.choice(lengths))
        for place in range(9, len(reference), 10):
            reference[place] += "."
        prediction = [word for word in reference if draw.random() < 0.7] + draw.choices(
            words, cum_weights=often, k=len(reference) // 4
        )
        yield " ".join(prediction), " ".join(reference).capitalize()


def spell(draw: random.Random) -> str:
    word = "".join(draw.choice(("ca", "le", "ri", "on", "su", "pe", "ta", "x")) for _ in range(draw.randint(1, 5)))
    return word + draw.choice(("", "", "s", "ing", "-ic", ","))


def score(what: str, answers: Answers, patients: list[int], resamples: int, detail: bool) -> None:
    """Print what all metrics of the texts cost, and their intervals."""
    if detail:
        for family in dict.fromkeys(METRICS[name] for name in NAMES):
            start = time.perf_counter()
            measure([name for name in NAMES if METRICS[name] == family], answers)
            print(f"  {family.rsplit('.', 1)[1]:40} {time.perf_counter() - start:6.2f} s")
    start, worked = time.perf_counter(), time.process_time()
    found, missing = measure(NAMES, answers)
    middle = time.perf_counter()
    intervals = bootstrap(found, patients, resamples)
    end, worked = time.perf_counter(), time.process_time() - worked
    assert all(np.isfinite(one.value) and one.low <= one.value <= one.high for one in intervals.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    words = np.mean([len(text.split()) for text in answers.references])
    print(f"{what} of {words:.1f} words, {len(set(patients)):,} patients, {len(found)} metrics: {end - start:.1f} s")
    print(f"  metrics {middle - start:.1f} s, {resamples:,} resamples {end - middle:.1f} s, processor {worked:.1f} s")
    print(f"  peak of memory {peak:.2f} GiB")
    if missing:
        print(f"  not here: {', '.join(missing)}")


if __name__ == "__main__":
    main()
