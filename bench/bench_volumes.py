"""Reading and preparing a CT volume of 300x512x512 beside MONAI: wall and processor time, memory.

A synthetic CT is written as .nii.gz into a temporary folder. Every measurement has a process of its own, which first
does the same to a small volume, so that imports are not counted; libraries use their default threads. Repeats
alternate; medians are printed. The disk's cache is warm for all. Needs Linux and the extra [dev].

Run: python bench/bench_volumes.py [--repeats 5]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from measure import forget_peak, memory_mib

SIZE = (300, 512, 512)
TARGET = (32, 256, 256)
RIVAL = "MONAI"
STEPS = "read, orient, window -1000..1000 HU, crop to foreground, resize to 32x256x256, normalise"


def monai(path: str, _: Path) -> Callable[[], np.ndarray]:
    """Return MONAI's chain on a file; its axes are turned to ours after the clock has stopped."""
    from monai.transforms import (
        Compose,
        CropForeground,
        EnsureChannelFirst,
        LoadImage,
        Orientation,
        Resize,
        ScaleIntensityRange,
    )

    chain = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Orientation("RAS", labels=None),
            ScaleIntensityRange(-1000, 1000, 0, 1, clip=True),
            CropForeground(),
            Resize(TARGET[::-1], mode="trilinear"),
        ]
    )
    return lambda: chain(path)


def ours(path: str, _: Path, antialias: bool) -> Callable[[], np.ndarray]:
    """Return our road from a file to what an encoder takes."""
    from medmvl.imaging.prepare import prepare
    from medmvl.imaging.read import read_volume

    return lambda: prepare(read_volume(path), spec(antialias)).pixels


def reading(path: str, _: Path) -> Callable[[], np.ndarray]:
    """Return the reading alone."""
    from medmvl.imaging.read import read_volume

    return lambda: read_volume(path).array[:1, :1, :1]


def cached(path: str, folder: Path) -> Callable[[], np.ndarray]:
    """Return our road from the cache of prepared volumes; filled before the clock starts."""
    from medmvl.imaging.cache import PreparedStore
    from medmvl.imaging.prepare import normalise

    PreparedStore(folder).fitted(path, spec(True))
    store = PreparedStore(folder)
    return lambda: normalise(store.fitted(path, spec(True)).values, spec(True))


def augmented(path: str, folder: Path) -> Callable[[], np.ndarray]:
    """Return what training adds on top: every augmentation at once, on the prepared volume."""
    from medmvl.imaging.augment import Augmentation, augment_volume
    from medmvl.imaging.cache import PreparedStore

    policy = Augmentation(rotate=10, scale=0.1, shift=0.05, brightness=0.1, contrast=0.1, noise=0.02)
    fitted = PreparedStore(folder).fitted(path, spec(True))
    return lambda: augment_volume(fitted.values, policy, (0, 0, path), fitted.spacing)[0]


WAYS: dict[str, Callable[[str, Path], Callable[[], np.ndarray]]] = {
    RIVAL: monai,
    "medmvl, as MONAI (antialias off)": lambda path, folder: ours(path, folder, False),
    "medmvl, antialias on": lambda path, folder: ours(path, folder, True),
    "medmvl, reading alone": reading,
    "medmvl, from the cache": cached,
    "medmvl, augmenting": augmented,
}


def spec(antialias: bool):
    """Return the spec that asks for what MONAI's chain does."""
    from medmvl.imaging.spec import VisionSpec

    return VisionSpec(
        size=TARGET, channels=1, mean=(0,), std=(1,), hu_window=(-1000, 1000), crop_foreground=0.0, antialias=antialias
    )


def write_scan(path: Path, size: tuple[int, int, int]) -> None:
    """Write something like a chest CT: a scanner's circle of noisy air, a body, lungs, a spine, a table."""
    import SimpleITK as sitk

    generator = np.random.default_rng(0)
    rows, columns = np.ogrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[2] * 1j]
    array = np.empty(size, np.int16)
    for plane, height in zip(array, np.linspace(-1, 1, size[0]), strict=True):
        wide = 0.8 - 0.1 * height**2
        body = (columns / wide) ** 2 + (rows / (0.7 * wide)) ** 2 < 1
        lungs = ((np.abs(columns) - 0.35) / 0.28) ** 2 + (rows / 0.4) ** 2 < 1 - height**2
        spine = columns**2 + (rows - 0.4) ** 2 < 0.01
        plane[:] = np.select([spine, lungs & body, body, rows > 0.75], [500, -850, 40, -600], -1000)
        plane += generator.normal(0, 15, plane.shape).astype(np.int16)
        plane[columns**2 + rows**2 > 1] = -1024
    image = sitk.GetImageFromArray(array.clip(-1024))
    image.SetSpacing((0.7, 0.7, 1.0))
    sitk.WriteImage(image, str(path), useCompression=True)


def measure(way: str, folder: Path) -> None:
    """Run in a process of its own: print seconds, processor seconds, and memory in MiB as JSON."""
    WAYS[way](str(folder / "small.nii.gz"), folder / "cache")()
    run = WAYS[way](str(folder / "scan.nii.gz"), folder / "cache")
    forget_peak()
    before = memory_mib("VmRSS")
    processor, begin = sum(os.times()[:2]), time.perf_counter()
    result = run()
    wall, processor = time.perf_counter() - begin, sum(os.times()[:2]) - processor
    peak = memory_mib("VmHWM")
    if way in list(WAYS)[:2]:
        array = np.asarray(result)[0]
        np.save(folder / f"{way}.npy", array.transpose(2, 1, 0)[:, ::-1, ::-1] if way == RIVAL else array)
    print(json.dumps([wall, processor, peak, peak - before]))


def main() -> None:
    """Measure all ways in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure[0], Path(arguments.measure[1]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scan(folder / "small.nii.gz", (20, 64, 64))
        write_scan(folder / "scan.nii.gz", SIZE)
        size = (folder / "scan.nii.gz").stat().st_size
        found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for _ in range(arguments.repeats):
            for way in WAYS:
                command = [sys.executable, __file__, "--measure", way, name]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
        results = [np.load(folder / f"{way}.npy") for way in list(WAYS)[:2]]
    print(f"{STEPS}\n{SIZE[0]}x{SIZE[1]}x{SIZE[2]} int16 .nii.gz of {size / 2**20:.0f} MiB; {os.cpu_count()} cores")
    print(f"medians of {arguments.repeats}; largest difference to MONAI {np.abs(results[0] - results[1]).max():.1e}\n")
    print(f"{'':34}{'wall s':>9}{'beside MONAI':>15}{'CPU s':>9}{'peak MiB':>10}{'of it, run':>12}")
    middles = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in found.items()}
    for way, (wall, processor, peak, extra) in middles.items():
        times = f"{middles[RIVAL][0] / wall:.1f} x" if way not in list(WAYS)[-1:] else ""
        print(f"{way:34}{wall:9.4f}{times:>15}{processor:9.3f}{peak:10.0f}{extra:12.0f}")


if __name__ == "__main__":
    main()
