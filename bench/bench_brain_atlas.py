"""How fast Brain-Atlas-VQA is built: pictures and volumes per second, everything included, and per processor second.

Run: python bench/bench_brain_atlas.py [--patients 400] [--size 64] [--volumes 400] [--workers 2]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from medmvl.data.benchmarks import brain_atlas, brain_atlas_3d

STUDIES = 3


def main() -> None:
    """Build both once into a temporary folder and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=400)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--volumes", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    begin = time.perf_counter()
    brain_atlas.load_atlas(brain_atlas._blur(given.size))
    print(f"atlas read in {time.perf_counter() - begin:.1f} s")
    brain_atlas_3d._atlas()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        measure(
            f"pictures of {given.size} px",
            given.patients * STUDIES,
            lambda: brain_atlas.build(root / "2d", given.patients, 0, given.size, STUDIES, given.workers),
        )
        measure(
            "volumes", given.volumes, lambda: brain_atlas_3d.build(root / "3d", given.volumes, workers=given.workers)
        )
        files = list((root / "3d" / "volumes").iterdir())
        print(f"a volume takes {sum(file.stat().st_size for file in files) / len(files) / 1e3:.0f} kB")


def measure(what: str, number: int, build: Callable[[], object]) -> None:
    """Print how long it takes to build."""
    used, begin = sum(os.times()[:4]), time.perf_counter()
    build()
    wall, processor = time.perf_counter() - begin, sum(os.times()[:4]) - used
    print(
        f"{number} {what} in {wall:.1f} s: {number / wall:.0f}/s; {number / processor:.0f} per second of processor time"
    )


if __name__ == "__main__":
    main()
