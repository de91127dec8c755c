"""Training with a frozen encoder, its features computed at every use or kept: seconds an epoch, as ratios.

    python bench/bench_features.py                       # CT-RATE-like: 30 questions about each volume of 32 slices
    python bench/bench_features.py --questions 30        # all questions of a volume in one row, not 8 as by default
    python bench/bench_features.py --learn connector     # the LLM frozen too
    python bench/bench_features.py --learn lora          # low-rank adapters in the LLM
    python bench/bench_features.py --case slake

Both ways go the road of `medmvl train`, in one process, from one recipe that differs in `run.features` alone; they do
optimizer steps in turn, each on the same samples, and medians are printed. An epoch is as many steps as it has; the
first epoch of a run that keeps features is longer by computing them. Volumes come from the cache of prepared ones.
Times are those of the processor, which others on the machine disturb least; wall time stands beside.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from measure import Clock
from medmvl.bundle import Bundle
from medmvl.data.mixture import Position
from medmvl.data.store import write_samples as write_store
from medmvl.model import tune
from medmvl.train.assemble import Place, plan_stage
from medmvl.train.checkpoint import Progress
from medmvl.train.features import Features
from medmvl.train.feed import Feed, loader
from medmvl.train.loop import Loop, Stop
from medmvl.train.objectives import Objective
from medmvl.train.optim import build_optimizer
from medmvl.train.recipe import Recipe
from medmvl.train.strategy import Engine
from shapes import SHAPES, Shape, build_bundle, write_samples

RATE = {"mode": "full", "lr": 1e-4}
LEARNING: dict[str, dict[str, dict[str, object]]] = {
    "connector": {},
    "lora": {"llm": {"mode": "lora", "rank": 16, "alpha": 32, "lr": 1e-4}},
    "llm": {"llm": RATE},
}
"""What learns beside the connector."""


class Spent(NamedTuple):
    """Seconds of one optimizer step, and its loss."""

    cpu: float
    wall: float
    loss: float


class Way:
    """One run of a stage, step by step; `completed` are the seconds it took to compute features first."""

    def __init__(self, bundle: Bundle, recipe: Recipe) -> None:
        stage = recipe.stages[0]
        self.size = stage.global_batch
        table = tune.apply(bundle.model, stage.tune)
        plan = plan_stage(stage, 0, bundle, recipe.run, table, Place(0, 1, False), print)
        self.objective: Objective = plan.objective
        self.engine = Engine("single", "fp32", stage.clip)
        clock = Clock()
        Features(self.objective, bundle, stage, recipe.run, "fp32", self.engine).keep(Position(), stage.steps, Stop())
        self.completed = clock()[0]
        self.kept = set(self.objective.preparer.processor.kept)
        self.engine.prepare(bundle.model, build_optimizer(table.groups, 0.0))
        frozen = tune.frozen(bundle.model)
        self.loop = Loop(self.engine, self.objective, stage, recipe.run, 10**6, frozen, None, None, None, None, Stop())
        self.loop._set_modes()
        self.progress = Progress(
            step=0, stage=0, stage_step=500, epoch=0, sample=0, data="", initial="", samples=0, refused=0
        )

    def steps(self) -> Iterator[Spent]:
        """Do optimizer steps without end."""
        planned = self.objective.order.steps(self.size)
        clock = Clock()
        for prepared in loader(Feed(lambda: planned, self.objective.preparer), 0):
            before = self.loop._window.loss
            self.loop.step(prepared, self.progress)
            yield Spent(*clock(), (self.loop._window.loss - before) / prepared.supervised)
            clock()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["ct_rate", "slake", "pathvqa", "captions"], default="ct_rate")
    parser.add_argument("--size", choices=["small", "wide"], default="small")
    parser.add_argument("--learn", choices=LEARNING, default="llm", help="beside the connector")
    parser.add_argument("--media", type=int, default=8, help="volumes or pictures")
    parser.add_argument("--questions", type=int, default=8, help="most questions about a medium in one row")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps to time of each way")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        measure(chosen, Path(folder))


def measure(chosen: argparse.Namespace, folder: Path) -> None:
    """Let both ways do steps in turn, and print seconds an epoch and ratios."""
    shape = replace(SHAPES[chosen.case], media=chosen.media)
    samples = [sample for group in write_samples(shape, folder) for sample in group]
    write_store(folder / "data", samples, name="data", version="1", licence="none")

    def way(kept: str | None) -> Way:
        return Way(build_bundle(chosen.size, shape, folder), _recipe(chosen, shape, folder, kept))

    computing, keeping = way(None), way(str(folder / "features"))
    later = way(str(folder / "features")).completed
    if computing.kept or keeping.kept != {shape.medium}:
        raise SystemExit(f"features of {keeping.kept or 'no tower'} were kept; the log says why")
    found = []
    for step, (one, other) in enumerate(zip(computing.steps(), keeping.steps(), strict=True)):
        print(f"step {step}: loss {one.loss:.4f} computing, {other.loss:.4f} reading", flush=True)
        if step:  # the first one warms up
            found.append((one, other))
        if step == chosen.steps:
            break
    steps = -(-shape.samples // shape.questions[0])
    print(
        f"{chosen.case}, {chosen.size}: {shape.samples} samples about {shape.media}, at most {chosen.questions} in a "
        f"row, learning {chosen.learn}, {torch.get_num_threads()} threads, {chosen.steps} steps of each"
    )
    slow, fast = (statistics.median(pair[way].cpu for pair in found) * steps for way in (0, 1))
    wall = [statistics.median(pair[way].wall for pair in found) for way in (0, 1)]
    rows = {
        "computed at every use": slow,
        "kept, first epoch": fast + keeping.completed,
        "kept, second epoch": fast,
        "kept, one epoch of a later run": fast + later,
    }
    for name, seconds in rows.items():
        print(f"  features {name:32} {seconds:7.1f} s CPU   {slow / seconds:5.2f} x")
    paired = statistics.median(one.cpu / other.cpu for one, other in found)
    print(f"  one step beside the next: {paired:.2f} x CPU; by the wall {wall[0]:.2f} s and {wall[1]:.2f} s")


def _recipe(chosen: argparse.Namespace, shape: Shape, folder: Path, kept: str | None) -> Recipe:
    learning = {f"{shape.medium}.connector": RATE} | LEARNING[chosen.learn]
    stage = {
        "name": "bench",
        "steps": 1000,
        "global_batch": shape.questions[0],
        "questions_per_image": chosen.questions,
        "data": [{"source": str(folder / "data")}],
        "tune": learning,
    }
    run = {"max_tokens": 4096, "data_roots": [str(folder)], "prepared": str(folder / "prepared"), "features": kept}
    return Recipe.load({"init_from": "bench", "stages": [stage], "run": run | {"workers": 0}})


if __name__ == "__main__":
    main()
