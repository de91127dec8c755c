"""Audit: samples and pictures per second, memory per sample, and near-duplicates among 100,000 alike pictures.

python bench/bench_audit.py --patients 2000 --samples 500000 --media 100000
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from medmvl.data.audit.duplicates import near_pairs
from medmvl.data.audit.media import SIDE, Usage
from medmvl.data.audit.media import look as look_at_media
from medmvl.data.audit.run import audit
from medmvl.data.audit.samples import Origin
from medmvl.data.audit.samples import look as look_at_samples
from medmvl.data.benchmarks.brain_atlas import build
from medmvl.data.store import SampleStore, split_names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=400, help="of the benchmark that is audited as a whole")
    parser.add_argument("--samples", type=int, default=200_000, help="text-only samples that memory is measured with")
    parser.add_argument("--media", type=int, default=100_000, help="fingerprints that are searched for near-duplicates")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        memory(Path(folder) / "text", chosen.samples, chosen.workers)  # first, while the peak is low
        small, phash = whole(Path(folder) / "atlas", chosen.patients, chosen.workers)
    alike(small, phash, chosen.media)


def whole(folder: Path, patients: int, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Audit a benchmark; return the small pictures and hashes of its media."""
    build(folder, patients=patients, seed=0)
    start = time.perf_counter()
    result = audit([folder], workers=workers)
    seconds = time.perf_counter() - start
    samples, media = (sum(split[key] for split in result.splits) for key in ("samples", "media"))
    kinds = {finding.kind: finding.count for finding in result.findings}
    print(f"benchmark: {samples:,} samples, {media:,} pictures in {seconds:.1f} s; findings: {kinds or 'none'}")
    origins = [Origin(SampleStore(folder, split), folder, "atlas", split) for split in split_names(folder)]
    start = time.perf_counter()
    facts = look_at_samples(origins, 1, workers)
    print(f"samples: {samples / (time.perf_counter() - start):,.0f} a second with {workers} processes")
    with tempfile.TemporaryFile() as scratch:
        usage = Usage.of(facts)
        start = time.perf_counter()
        found = look_at_media(origins, usage, scratch, 1, workers)
        print(f"pictures of 64 x 64: {media / (time.perf_counter() - start):,.0f} a second with {workers} processes")
        return np.array(found.small), found.phash


def memory(folder: Path, count: int, workers: int) -> None:
    """Audit text-only samples, and tell what they add to the peak of memory."""
    folder.mkdir()
    with (folder / "train.jsonl").open("w") as file:
        for number in range(count):
            turns = [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"A {number}"}]
            file.write(json.dumps({"id": str(number), "messages": turns, "task": "text"}) + "\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    result = audit([folder], workers=workers)
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = f"{count:,} text-only samples: {count / seconds:,.0f} a second, {len(result.findings)} findings"
    print(f"{told}, {1024 * (peak - before) / count:,.0f} bytes a sample, peak {peak / 1024:,.0f} MB")


def alike(small: np.ndarray, phash: np.ndarray, count: int) -> None:
    """Search copies of real pictures with a few hash bits changed: as crowded as real sets, none of them alike."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(phash), count)
    hashes = phash[chosen].copy()
    for _ in range(3):
        hashes ^= np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
    pictures = np.clip(small[chosen] + rng.normal(0, 40, (count, SIDE * SIDE)).astype(np.int16), 0, 255).astype(
        np.uint8
    )
    split = count * 9 // 10
    start = time.perf_counter()
    found = list(near_pairs(np.arange(split), np.arange(split, count), hashes, pictures, np.full((count, 3), 256)))
    seconds = time.perf_counter() - start
    print(f"near-duplicates: {split:,} against {count - split:,} pictures in {seconds:.1f} s, {len(found)} pairs")


if __name__ == "__main__":
    main()
