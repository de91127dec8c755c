"""Planning a million samples: opening the store, the order of an epoch, and its rows, given the tokens of each sample.

    python bench/bench_plan.py                 # seconds and peak memory for growing numbers of samples
    python bench/bench_plan.py --samples 1000000 --global-batch 64 --devices 8

Each number has a process of its own. Samples stand in one JSONL file, as `medmvl data convert` writes it; their media
do not exist, for planning opens none.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IMAGE_TOKENS, TEXT_TOKENS, ROW_TOKENS = 256, (25, 65), 2048
KINDS = {"22 an image": 22, "1 an image": 1, "all of one image": None, "text alone": 0}


def write(folder: Path, samples: int, each: int | None) -> None:
    """Write a store of so many samples, `each` about an image; 0: without any, None: all about one."""
    folder.mkdir()
    with (folder / "train.jsonl").open("w") as file:
        for number in range(samples):
            image = number // each if each else 0
            shown = [] if each == 0 else [{"type": "image", "path": f"/images/{image}.png"}]
            turns = [
                {"role": "user", "content": [*shown, {"type": "text", "text": f"What is seen at place {number}?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Nothing that was not there before."}]},
            ]
            file.write(json.dumps({"id": str(number), "messages": turns, "task": "vqa"}) + "\n")


def plan(folder: Path, global_batch: int, devices: int) -> None:
    """Plan one epoch in this process and print what it took as JSON."""
    from medmvl.data.mixture import Mixture
    from medmvl.data.store import SampleStore
    from medmvl.processing.encoded import Branch
    from medmvl.processing.pack import Group, pack

    took, begin, before = {}, time.perf_counter(), _peak()
    store = SampleStore(folder)
    took["open"], begin = time.perf_counter() - begin, time.perf_counter()
    mixture = Mixture([(store, 1.0)], seed=1)
    steps = mixture.steps(global_batch)
    next(steps)
    took["first step"], begin = time.perf_counter() - begin, time.perf_counter()
    planned = [next(steps).groups for _ in range(len(store) // global_batch)]
    took["order"], begin = time.perf_counter() - begin, time.perf_counter()
    tokens = np.random.default_rng(0).integers(*TEXT_TOKENS, len(store))
    blank = np.zeros(max(TEXT_TOKENS), np.int32)
    prefix = np.zeros(IMAGE_TOKENS, np.int32)
    slots = used = 0
    for groups in planned:
        filled = [
            Group((), prefix, tuple(Branch(blank[: tokens[row]], blank, 1) for _, row in group), ("",) * len(group))
            for group in groups
        ]
        lengths = sorted((row.num_tokens for row in pack(filled, ROW_TOKENS, devices)), reverse=True)
        used += sum(lengths)
        slots += sum(devices * length for length in lengths[::devices])
    took["rows"] = time.perf_counter() - begin
    print(json.dumps({"took": took, "mib": _peak(), "before": before, "padding": 1 - used / slots}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print a line per kind of data and number of samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[250_000, 500_000, 1_000_000])
    parser.add_argument("--global-batch", type=int, default=64)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plan:
        return plan(given.plan, given.global_batch, given.devices)
    print(f"an epoch in steps of {given.global_batch}, rows of {ROW_TOKENS} for {given.devices} device(s); seconds")
    heads = ("open", "first step", "order", "rows", "all", "peak MiB", "padding")
    print(f"{'':18}{'samples':>10}" + "".join(f"{head:>11}" for head in heads))
    for kind, each in KINDS.items():
        for samples in given.samples:
            with tempfile.TemporaryDirectory() as name:
                write(Path(name) / "store", samples, each)
                command = [sys.executable, __file__, "--plan", f"{name}/store", "--devices", str(given.devices)]
                command += ["--global-batch", str(given.global_batch)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            seconds = [*found["took"].values(), sum(found["took"].values())]
            row = [f"{one:.2f}" for one in seconds] + [f"{found['mib']:.0f}", f"{found['padding']:.1%}"]
            print(f"{kind:18}{samples:>10,}" + "".join(f"{one:>11}" for one in row), flush=True)


if __name__ == "__main__":
    main()
