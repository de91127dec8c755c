"""Training beside other ways to train: the same model, samples, loss and gradients; seconds and memory as ratios.

    python bench/bench_train.py same  slake            # loss and gradients equal those of the peers
    python bench/bench_train.py speed slake            # samples a second beside the peers
    python bench/bench_train.py speed captions --size wide --threads 2
    python bench/bench_train.py speed captions --tune image.connector
    python bench/bench_train.py memory --size wide     # peak memory of a step, a process each
    python bench/bench_train.py efficiency             # share of the matrix-multiply rate

Ours goes the road that training goes: samples, processor, rows, model, clipping, AdamW. Peers (peers.py) get rows that
are tokenized, and pixels that are prepared, before the clock starts. Ways alternate within one process and one number
of threads, and medians are printed. Times are those of the processor, which others on the machine disturb least; wall
time stands beside. A peer's rows all cost the same, so it runs `--rows` of them, and its time is scaled up; what
an optimizer step costs is counted once for everyone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from measure import Clock, Spent, forget_peak, memory_mib, record
from medmvl.bundle import Bundle
from medmvl.core.schema import Sample
from medmvl.data.mixture import Position, Step
from medmvl.imaging.cache import PreparedStore
from medmvl.model import tune
from medmvl.model.config import TuneRule
from medmvl.train.assemble import stage_processor
from medmvl.train.checkpoint import Progress
from medmvl.train.feed import ChatPreparer
from medmvl.train.loop import Loop, Stop
from medmvl.train.objectives import Objective
from medmvl.train.optim import build_optimizer
from medmvl.train.recipe import Run, Stage
from medmvl.train.strategy import Engine
from peers import CLIP, LEARNING_RATE, Line, Plain, Transformers, lines
from shapes import SHAPES, VOCABULARIES, Shape, build_bundle, conversations, write_samples

MICRO = 8
"""Rows of a peer's batch."""


class Ours:
    """One stage of training as `medmvl train` sets it up, its optimizer steps done one by one."""

    def __init__(
        self,
        bundle: Bundle,
        table: tune.TuningTable,
        samples: Sequence[Sequence[Sample]],
        folder: Path,
        row_tokens: int,
    ) -> None:
        flat = [sample for group in samples for sample in group]
        numbers = iter(range(len(flat)))
        self.planned = Step(tuple(tuple((0, next(numbers)) for _ in group) for group in samples), Position())
        stage = Stage.model_validate(
            {"name": "bench", "steps": 1_000, "global_batch": len(flat), "data": [{"source": "bench"}],
             "clip": CLIP, "tune": {"*": {"mode": "full", "lr": LEARNING_RATE}}}
        )  # fmt: skip
        preparer = ChatPreparer(
            read=lambda item: flat[item[1]],
            processor=stage_processor(bundle.processor, None, 16_384, PreparedStore(folder / "prepared")),
            row_tokens=row_tokens,
            position_limit=None,
            towers=tuple(bundle.model.towers),
            drop_media=[False],
            augmentation=None,
            seed=(0, 0),
            rank=0,
            world=1,
        )
        self.engine = Engine("single", "fp32", CLIP)
        self.engine.prepare(bundle.model, build_optimizer(table.groups, 0.0))
        self.preparer = preparer
        objective = Objective(bundle.model, None, preparer, 1_000, "")
        frozen = tune.frozen(bundle.model)
        self.loop = Loop(self.engine, objective, stage, Run(), 1_000, frozen, None, None, None, None, Stop())
        self.progress = Progress(
            step=0, stage=0, stage_step=500, epoch=0, sample=0, data="", initial="", samples=0, refused=0
        )
        bundle.model.train()

    def step(self) -> Spent:
        """Do an optimizer step."""
        clock = Clock()
        self.loop.step(self.preparer(self.planned), self.progress)
        return Spent(clock(), (0.0, 0.0))

    def backward(self) -> float:
        """Leave the gradients of a step in place; return its loss."""
        prepared = self.preparer(self.planned)
        total = 0.0
        for batch in prepared.batches:
            loss = self.engine.module(**batch.model_inputs(), normalizer=prepared.supervised).loss
            loss.backward()
            total += float(loss.detach())
        return total


def same(chosen: argparse.Namespace, folder: Path) -> None:
    """Compare loss and gradients of one step with the peers'."""
    _, samples, bundle, table = _set_up(chosen, folder)
    rows = lines(bundle, [sample for group in samples for sample in group])
    plain, transformers = Plain(bundle, chosen.micro), Transformers(bundle, chosen.micro, str(folder / "trainer"))
    found = {"plain": (plain.backward(rows), dict(plain.gradients()))}
    kept: dict[str, torch.Tensor] = {}
    unclipped = float("inf")
    transformers.step(
        rows, lambda: kept.update((name, one.clone()) for name, one in transformers.gradients()), unclipped
    )
    found["transformers"] = (transformers.loss, kept)
    ours = Ours(bundle, table, samples, folder, chosen.row_tokens)
    loss = ours.backward()
    own = {name: one.grad for name, one in bundle.model.named_parameters() if one.grad is not None}
    norm = _norm(own.values())
    print(f"{chosen.case}, {chosen.size}: {len(rows)} samples, loss {loss:.6f}, gradient norm {norm:.4f}")
    for name, (other, theirs) in found.items():
        assert own.keys() == theirs.keys(), own.keys() ^ theirs.keys()
        away = _norm(own[key] - theirs[key] for key in own) / norm
        print(f"  beside {name:13} loss differs by {abs(other / loss - 1):.1e}, gradient by {away:.1e} of its norm")
        assert abs(other / loss - 1) < 1e-5 and away < 1e-5


def speed(chosen: argparse.Namespace, folder: Path) -> None:
    """Let ways of training do a step in turn, and print samples a second and ratios."""
    shape, ways = _ways(chosen, folder)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(chosen.repeats + 1):
        for name, run in ways.items():
            spent = run()
            if repeat:  # the first one warms up
                found[name].append(spent)
    print(f"{chosen.case}, {chosen.size}: {shape.samples} samples a step, medians of {chosen.repeats}, "
          f"{torch.get_num_threads()} thread(s)")  # fmt: skip
    print(f"{'':16}{'CPU s':>9}{'wall s':>9}{'samples/s':>11}{'ours, x':>9}{'wall, x':>9}{'range of x':>16}")
    middle = {name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in found.items()}
    for name, (processor, wall) in middle.items():
        each = [other[0] / own[0] for other, own in zip(found[name], found["ours"], strict=True)]
        print(f"{name:16}{processor:9.2f}{wall:9.2f}{shape.samples / processor:11.2f}"
              f"{processor / middle['ours'][0]:9.2f}{wall / middle['ours'][1]:9.2f}"
              f"{f'{min(each):.2f} - {max(each):.2f}':>16}")  # fmt: skip
    together = f", {chosen.questions} together" if chosen.questions else ""
    what = f"train {chosen.case}{together}, {chosen.size}"
    record(chosen.record, what, {name: processor / shape.samples for name, (processor, _) in middle.items()})


def _ways(chosen: argparse.Namespace, folder: Path) -> tuple[Shape, dict[str, Callable[[], tuple[float, float]]]]:
    """Return the data, and what does an optimizer step over it and tells its CPU and wall seconds, by name."""
    shape, samples, bundle, table = _set_up(chosen, folder)
    flat = [sample for group in samples for sample in group]
    rows = lines(bundle, flat)
    plain, transformers = Plain(bundle, chosen.micro), Transformers(bundle, chosen.micro, str(folder / "trainer"))
    some = rows[: chosen.rows or len(rows)]
    scale = len(rows) / len(some)

    def scaled(run: Callable[[Sequence[Line]], Spent], over: Sequence[Line], factor: float) -> tuple[float, float]:
        spent = run(over)
        return tuple(one * factor + update for one, update in zip(spent.rows, spent.update, strict=True))

    ways: dict[str, Callable[[], tuple[float, float]]] = {}
    if max(shape.questions) > 1:
        talks = lines(bundle, conversations(samples))
        first = talks[: max(1, chosen.rows // max(shape.questions))] if chosen.rows else talks
        ways["conversations"] = lambda: scaled(talking.step, first, len(talks) / len(first))
        talking = plain
    ways["plain"] = lambda: scaled(plain.step, some, scale)
    ways["transformers"] = lambda: scaled(transformers.step, some, scale)
    ours = Ours(bundle, table, samples, folder, chosen.row_tokens)
    return shape, {"ours": lambda: ours.step().rows, **ways}


def memory(chosen: argparse.Namespace, _: Path) -> None:
    """Print the peak memory of processes that do two steps each."""
    print(f"{chosen.case}, {chosen.size}: peak resident memory of {chosen.samples} samples a step, AdamW included")
    peaks = {}
    for way in ("ours", "plain", "transformers"):
        command = [sys.executable, __file__, "peak", chosen.case, "--size", chosen.size, "--way", way]
        command += ["--samples", str(chosen.samples), "--micro", str(chosen.micro), "--threads", str(chosen.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[way] = json.loads(done.stdout.splitlines()[-1])
        print(f"{way:14}{peaks[way]:9.0f} MiB{peaks['ours'] / peaks[way]:9.2f}")


def peak(chosen: argparse.Namespace, folder: Path) -> None:
    """Do two steps one way in this process, and print its peak memory in MiB."""
    _, samples, bundle, table = _set_up(chosen, folder)
    if chosen.way == "ours":
        ours = Ours(bundle, table, samples, folder, chosen.row_tokens)
        run: Callable[[], object] = ours.step
    else:
        rows = lines(bundle, [sample for group in samples for sample in group])
        peer = Plain(bundle, chosen.micro) if chosen.way == "plain" else Transformers(bundle, chosen.micro, str(folder))
        bundle.model = None  # the peer has its copy
        run = lambda: peer.step(rows)  # noqa: E731
    forget_peak()
    for _ in range(2):
        run()
    print(json.dumps(memory_mib("VmHWM")))


def efficiency(chosen: argparse.Namespace, folder: Path) -> None:
    """Print useful operations a second as a share of the rate of matrix products in this process."""
    _, samples, bundle, table = _set_up(chosen, folder)
    ours = Ours(bundle, table, samples, folder, chosen.row_tokens)
    operations = step_operations(bundle, ours)
    rates, shares = [], []
    for repeat in range(chosen.repeats + 1):
        rate, took = product_rate(), ours.step().rows[0]
        if repeat:
            rates.append(rate)
            shares.append(operations / took / rate)
    print(
        f"{chosen.case}, {chosen.size}: {operations / 1e9:.0f} useful GFLOP a step, matrix products at "
        f"{statistics.median(rates) / 1e9:.0f} GFLOP/s of processor time: efficiency {statistics.median(shares):.2f} "
        f"({min(shares):.2f} - {max(shares):.2f})"
    )


def product_rate(side: int = 1024, seconds: float = 1.0) -> float:
    """Return multiplications and additions a second of processor time in products of square matrices."""
    first, second, out = torch.randn(side, side), torch.randn(side, side), torch.empty(side, side)
    torch.mm(first, second, out=out)
    clock, spent, done = Clock(), 0.0, 0
    while spent < seconds:
        for _ in range(10):
            torch.mm(first, second, out=out)
        spent, done = spent + clock()[0], done + 10
    return 2 * side**3 * done / spent


def step_operations(bundle: Bundle, ours: Ours) -> float:
    """Count the multiplications and additions that a step needs, whoever does them.

    A linear layer takes 2 x inputs x outputs a token, the head only where a token is learned; attention 4 x width for
    each pair of tokens that may see each other. Backward counts twice forward. Norms, activations, softmax, masked
    pairs and padding count nothing.
    """
    config = bundle.model.llm.config
    body = sum(p.numel() for name, p in bundle.model.llm.named_parameters() if p.ndim == 2 and "embed" not in name)
    total = 0.0
    for batch in ours.preparer(ours.planned).batches:
        tokens, learned = batch.ids.shape[1], len(batch.targets)
        pairs = sum(s.length * s.prefix_length + s.length * (s.length + 1) / 2 for s in batch.layout.segments)
        total += 2 * body * tokens + 2 * config.hidden_size * config.vocab_size * learned
        total += 4 * config.hidden_size * config.num_hidden_layers * pairs
        for name, pixels in batch.pixels.items():
            total += len(pixels) * tower_operations(bundle.model.towers[name], name == "volume")
    return 3 * total


def tower_operations(tower: torch.nn.Module, is_volume: bool) -> float:
    """Count what one medium takes, forward."""
    encoder = getattr(tower.encoder, "slice_encoder", tower.encoder)
    config, tokens = encoder.model.config, encoder.num_tokens
    shown = tower.encoder.spec.size[0] if is_volume else 1
    each = 2 * tokens * sum(p.numel() for n, p in encoder.named_parameters() if p.ndim >= 2 and "position" not in n)
    each += 4 * config.hidden_size * config.num_hidden_layers * tokens**2
    if not is_volume:
        return each + 2 * tokens * sum(p.numel() for p in tower.connector.parameters() if p.ndim == 2)
    connector, width, seen = tower.connector, tower.encoder.width, shown * tokens
    own = 2 * connector.num_tokens * (2 * width**2 + sum(p.numel() for p in connector.mlp.parameters() if p.ndim == 2))
    return shown * each + own + 2 * seen * 2 * width**2 + 4 * width * connector.num_tokens * seen


def _norm(tensors) -> float:
    return sum(float(one.double().square().sum()) for one in tensors) ** 0.5


def _set_up(chosen: argparse.Namespace, folder: Path) -> tuple[Shape, list[list[Sample]], Bundle, tune.TuningTable]:
    """Return the data, its samples by medium, the model, and what of it learns."""
    shape = _shape(chosen)
    bundle = build_bundle(chosen.size, shape, folder)
    rules = {part: TuneRule(mode="full", lr=LEARNING_RATE) for part in chosen.tune}
    return shape, write_samples(shape, folder), bundle, tune.apply(bundle.model, rules)


def _shape(chosen: argparse.Namespace) -> Shape:
    """Return the data that was asked for."""
    from dataclasses import replace

    shape = SHAPES[chosen.case]
    if chosen.samples:
        per = min(chosen.samples, shape.questions[0])
        shape = replace(shape, questions=(per,), media=chosen.samples // per)
    return shape.grouped(chosen.questions) if chosen.questions else shape


def main() -> None:
    """Run one bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=["same", "speed", "memory", "peak", "efficiency"])
    parser.add_argument("case", nargs="?", choices=SHAPES, default="slake")
    parser.add_argument("--size", choices=VOCABULARIES, default="small")
    parser.add_argument("--tune", nargs="+", default=["*"], help="parts that learn; the others are frozen")
    parser.add_argument("--questions", type=int, default=0, help="largest group of an image; default: all of them")
    parser.add_argument("--samples", type=int, default=0, help="of a step, instead of the shape's")
    parser.add_argument("--micro", type=int, default=MICRO, help="rows of a peer's batch")
    parser.add_argument("--rows", type=int, default=MICRO, help="rows a peer runs, scaled up; 0: all of them")
    parser.add_argument("--row-tokens", type=int, default=2048, help="our longest row")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", type=Path, help="file that gets the medians of `speed`, for plot_ratios.py")
    parser.add_argument("--quick", action="store_true", help="one repeat of few rows")
    parser.add_argument("--way", choices=["ours", "plain", "transformers"], default="ours", help="of `peak`")
    chosen = parser.parse_args()
    if chosen.bench in ("memory", "peak"):
        chosen.samples = chosen.samples or 8
    if chosen.quick:
        chosen.repeats, chosen.rows, chosen.micro = 1, 4, 4
    torch.set_num_threads(chosen.threads)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    with tempfile.TemporaryDirectory() as folder:
        globals()[chosen.bench](chosen, Path(folder))


if __name__ == "__main__":
    main()
