"""How long training waits for its data, and how long it takes to the first step.

    python bench/bench_input.py wait               # share of step time spent waiting, prepared volumes, by workers
    python bench/bench_input.py wait --case slake  # pictures, decoded at every use
    python bench/bench_input.py start runs/demo    # seconds from the command to the first step of demo_2d and demo_3d

`wait` trains connector and LLM on CT-RATE-like data with `medmvl train`, and prints what its log says of the steps
behind the first two. `start` needs the data of `medmvl demo --out runs/demo`; seconds of the processor, which others on
the machine disturb least, stand beside those of the wall.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from medmvl.data.store import write_samples as write_store
from medmvl.imaging.cache import PreparedStore
from medmvl.train.run import train
from shapes import SHAPES, build_bundle, write_samples

LEARN = {"mode": "full", "lr": 1e-4}


def wait(chosen: argparse.Namespace, folder: Path) -> None:
    """Train with other numbers of loader processes, and print the share of time that steps wait for their data."""
    shape = replace(SHAPES[chosen.case], media=chosen.media)
    samples = [sample for group in write_samples(shape, folder) for sample in group]
    write_store(folder / "data", samples, name="data", version="1", licence="none")
    bundle = build_bundle("small", shape, folder)
    spec = bundle.model.towers[shape.medium].encoder.spec
    if spec.is_volume:
        for path in {part.path for sample in samples for part in sample.media}:
            PreparedStore(folder / "prepared").prepare(path, spec)
    start = bundle.save(folder / "start")
    for workers in chosen.workers:
        stage = {
            "name": "bench",
            "steps": chosen.steps,
            "global_batch": shape.questions[0],
            "data": [{"source": str(folder / "data")}],
            "tune": {"llm": LEARN, f"{shape.medium}.connector": LEARN},
        }
        run = {
            "output": str(folder / f"run-{workers}"),
            "workers": workers,
            "log_every": 1,
            "prepared": str(folder / "prepared"),
            "features": str(folder / "features") if chosen.features else None,
            "data_roots": [str(folder)],
            "trackers": [],
        }
        place = train({"init_from": str(start), "stages": [stage], "run": run})
        lines = [json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()]
        seconds = [shape.questions[0] / line["samples_per_s"] for line in lines[2:]]
        waited = [line["data_wait"] * second for line, second in zip(lines[2:], seconds, strict=True)]
        print(
            f"{chosen.case}, {workers} workers: {sum(waited) / sum(seconds):6.2%} of the time is waiting; "
            f"a step takes {statistics.median(seconds):.2f} s, {statistics.median(waited) * 1000:.1f} ms of it waiting",
            flush=True,
        )


def start(chosen: argparse.Namespace, folder: Path) -> None:
    """Start the demo's recipes, and print the seconds to the first step."""
    root = chosen.root.absolute()
    for recipe in chosen.recipes:
        found = [_first_step(recipe, root, folder / f"{recipe}-{number}") for number in range(chosen.repeats)]
        wall, cpu = (statistics.median(times) for times in zip(*found, strict=True))
        print(f"{recipe}: {wall:.1f} s to the first step, {cpu:.1f} s CPU (medians of {chosen.repeats})", flush=True)


def _first_step(recipe: str, root: Path, output: Path) -> tuple[float, float]:
    """Return wall and processor seconds from the command to the first line of the log; the run is ended then."""
    settings = {
        "run.output": str(output),
        "run.data_roots": [str(root / "data")],
        "run.features": str(output / "features"),
        "run.prepared": str(output / "prepared"),
        "model.llm.tokenizer": str(root / "tokenizer"),
        **({"init_from": str(root / "2d")} if recipe == "demo_3d" else {}),
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "medmvl", "train", recipe, *overrides],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    log = output / "log.jsonl"
    while not (log.exists() and log.stat().st_size):
        if process.poll() is not None:
            raise SystemExit(f"{recipe} ended before its first step (exit code {process.returncode})")
        time.sleep(0.02)
    wall = time.perf_counter() - begun
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    process.kill()
    process.wait()
    return wall, cpu


def main() -> None:
    """Measure one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    waiting = what.add_parser("wait")
    waiting.add_argument("--case", choices=["ct_rate", "slake", "pathvqa", "captions"], default="ct_rate")
    waiting.add_argument("--media", type=int, default=4)
    waiting.add_argument("--steps", type=int, default=8)
    waiting.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    waiting.add_argument("--features", action="store_true", help="keep features of the encoder, which is frozen")
    starting = what.add_parser("start")
    starting.add_argument("root", type=Path, help="what `medmvl demo` left")
    starting.add_argument("--repeats", type=int, default=3)
    starting.add_argument("--recipes", nargs="+", default=["demo_2d", "demo_3d"])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"wait": wait, "start": start}[chosen.what](chosen, Path(folder))


if __name__ == "__main__":
    main()
