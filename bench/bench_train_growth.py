"""What a training step costs as its data grow: processor seconds and memory, ours beside a plain loop.

    python bench/bench_train_growth.py                                  # all, about ten minutes
    python bench/bench_train_growth.py questions slices --plot docs/images/training_growth.svg

Every point has a process of its own, which trains the model `small` for two steps and tells the second one's time and
the peak of its resident memory, model, optimizer and libraries included. The slope is that of time between neighbours:
1 where it doubles with size, less where a fixed part is shared.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from bench_train import LEARNING_RATE, Ours
from measure import forget_peak, memory_mib
from medmvl.model import tune
from medmvl.model.config import TuneRule
from peers import Plain, lines
from shapes import SHAPES, Shape, build_bundle, write_samples

_SLAKE, _CT, _TEXT = SHAPES["slake"], SHAPES["ct_rate"], SHAPES["text"]
GROWING: dict[str, tuple[str, tuple[int, ...], Callable[[int], Shape]]] = {
    "questions": (
        "questions about one image",
        (1, 2, 4, 8, 16, 32),
        lambda n: replace(_SLAKE, questions=(n,), media=1),
    ),
    "image_tokens": (
        "image tokens, 8 questions",
        (64, 256, 1024),
        lambda n: replace(_SLAKE, questions=(8,), media=1, image_tokens=n),
    ),
    "length": (
        "tokens of one text",
        (256, 512, 1024, 2048, 4096),
        lambda n: replace(_TEXT, asked=(n // 2,) * 2, answered=(n // 2,) * 2, media=1),
    ),
    "slices": ("slices of a volume, 8 questions", (4, 8, 16, 32), lambda n: replace(_CT, questions=(8,), slices=n)),
    "images": ("images a step, 4 questions each", (1, 2, 4, 8, 16), lambda n: replace(_SLAKE, questions=(4,), media=n)),
}
WAYS = ("ours", "plain")
ROW_TOKENS, MICRO = 2048, 8


def point(name: str, size: int, way: str, folder: Path) -> None:
    """Train two steps in this process and print what the second one took."""
    shape = GROWING[name][2](size)
    bundle = build_bundle("small", shape, folder)
    table = tune.apply(bundle.model, {"*": TuneRule(mode="full", lr=LEARNING_RATE)})
    samples = write_samples(shape, folder)
    if way == "ours":
        ours = Ours(bundle, table, samples, folder, max(ROW_TOKENS, size * (name == "length")))
        step = ours.step
    else:
        rows = lines(bundle, [sample for group in samples for sample in group])
        plain = Plain(bundle, MICRO)
        step = lambda: plain.step(rows)  # noqa: E731
    step()
    forget_peak()
    spent = step()
    print(json.dumps([spent.rows[0] + spent.update[0], memory_mib("VmHWM")]))


def plot(found: dict[str, dict[str, list[list[float]]]], path: Path) -> None:
    """Draw time above memory, a column for each thing that grows."""
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(2, len(found), figsize=(3.2 * len(found), 5.6), squeeze=False, sharex="col")
    for column, (name, ways) in enumerate(found.items()):
        title, sizes, _ = GROWING[name]
        for row, what in enumerate(("processor seconds a step", "peak memory, MiB")):
            axis = axes[row][column]
            for way, colour in zip(WAYS, ("#1b6ca8", "#b0453a"), strict=True):
                axis.plot(sizes, [values[row] for values in ways[way]], "o-", color=colour, label=way, markersize=4)
            axis.set(xscale="log", yscale="log", ylabel=what if column == 0 else "")
            axis.set_xticks(sizes, labels=[str(size) for size in sizes])
            axis.minorticks_off()
            axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:,g}")
            axis.grid(alpha=0.3)
        axes[1][column].set_xlabel(title)
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Print a table of points, and draw them if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("growing", nargs="*", metavar="WHAT", help=f"of {', '.join(GROWING)}")
    parser.add_argument("--plot", type=Path, help="file to draw into")
    parser.add_argument("--point", nargs=3, metavar=("WHAT", "SIZE", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.point:
        name, size, way = given.point
        with tempfile.TemporaryDirectory() as folder:
            return point(name, int(size), way, Path(folder))
    found: dict[str, dict[str, list[list[float]]]] = {}
    print(f"{'':34}{'size':>6}" + "".join(f"{way + ' s':>10}{'slope':>7}{'MiB':>7}" for way in WAYS))
    for name in given.growing or GROWING:
        title, sizes, _ = GROWING[name]
        found[name] = {way: [] for way in WAYS}
        for index, size in enumerate(sizes):
            told = ""
            for way in WAYS:
                command = [sys.executable, __file__, "--point", name, str(size), way]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                values = json.loads(done.stdout.splitlines()[-1])
                before = found[name][way][-1] if index else None
                found[name][way].append(values)
                slope = f"{math.log(values[0] / before[0]) / math.log(size / sizes[index - 1]):.2f}" if before else ""
                told += f"{values[0]:10.2f}{slope:>7}{values[1]:7.0f}"
            print(f"{title:34}{size:>6}{told}", flush=True)
    if given.plot:
        plot(found, given.plot)


if __name__ == "__main__":
    main()
