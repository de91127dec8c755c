"""How long SA-Med2D's masks take to be named and grouped, for growing numbers: `python bench/bench_sa_med2d.py`."""

from __future__ import annotations

import argparse
import statistics
import time

from medmvl.data.adapters.sa_med2d import by_class, image_name

MASKS_PER_IMAGE, REPEATS = 5, 3


def names(count: int) -> dict[str, list[str]]:
    """Return image -> masks as SAMed2D_v1.json lists them, `count` masks in all."""
    images = {}
    for image in range(count // MASKS_PER_IMAGE):
        stem = f"ct_00--Totalsegmentator_dataset--s{image // 100:04}--with--dashes--z_{image % 100:04}"
        masks = [f"masks/{stem}--{number:04}_{image % 3:03}.png" for number in range(MASKS_PER_IMAGE)]
        images[f"images/{stem}.png"] = masks
    return images


def seconds(images: dict[str, list[str]]) -> float:
    """Return how long all of them take: the image's case, and its masks by class."""
    start = time.perf_counter()
    cases = set()
    for image, masks in images.items():
        cases.add(image_name(image).case)
        named, wrong = by_class(image.removeprefix("images/").removesuffix(".png"), masks)
        assert len(named) == MASKS_PER_IMAGE and not wrong
    return time.perf_counter() - start


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for count in (50_000, 100_000, 200_000, 400_000):
        images = names(count)
        taken = statistics.median(seconds(images) for _ in range(REPEATS))
        print(f"{count:>8,} masks: {taken:6.3f} s, {taken / count * 1e6:5.2f} microseconds each")
    stem = "ct_00--set--case--x_0001"
    one = [f"masks/{stem}--{number % 2000:04}_{number // 2000:03}.png" for number in range(200_000)]
    start = time.perf_counter()
    by_class(stem, one)
    print(f" 200,000 masks of one image: {time.perf_counter() - start:6.3f} s")


if __name__ == "__main__":
    main()
