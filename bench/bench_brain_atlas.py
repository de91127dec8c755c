"""How fast Brain-Atlas-VQA is built: pictures per second, everything included, and per second of processor time.

Run: python bench/bench_brain_atlas.py [--patients 400] [--size 64] [--workers 2]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from medmvl.data.benchmarks.atlas import load_atlas
from medmvl.data.benchmarks.brain_atlas import _blur, build

STUDIES = 3


def main() -> None:
    """Build once into a temporary folder and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=400)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    load_atlas(_blur(arguments.size))
    loaded = time.perf_counter()
    used = sum(os.times()[:4])
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder) / "atlas", arguments.patients, 0, arguments.size, STUDIES, arguments.workers)
    pictures = arguments.patients * STUDIES
    wall, processor = time.perf_counter() - loaded, sum(os.times()[:4]) - used
    print(f"atlas read in {loaded - begin:.1f} s")
    print(f"{pictures} pictures of {arguments.size} px with {arguments.workers} workers in {wall:.1f} s")
    print(f"{pictures / wall:.0f} pictures/s; {pictures / processor:.0f} per second of processor time")


if __name__ == "__main__":
    main()
