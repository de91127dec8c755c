"""A tiny MedMNIST: one subset each of pictures in colour, of X-rays with several labels, and of volumes."""

from pathlib import Path

import numpy as np

from adapter_root import Root

COUNTS = {"train": 4, "val": 2, "test": 3}


def arrays(size: int, shape: tuple[int, ...], labels: dict[str, list]) -> dict[str, np.ndarray]:
    """Return the six arrays of a file: every image its own noise, labels uint8 [N, L]."""
    rng = np.random.default_rng(size)
    found = {}
    for split, given in labels.items():
        found[f"{split}_images"] = rng.integers(0, 256, (len(given), *shape), np.uint8)
        found[f"{split}_labels"] = np.array(given, np.uint8).reshape(len(given), -1)
    return found


def one_each(classes: int) -> dict[str, list]:
    """Return labels 0, 1, 2, ... for every split."""
    return {split: [number % classes for number in range(count)] for split, count in COUNTS.items()}


def build(folder: Path) -> Root:
    """Six images are wrong: labels that stand for no class."""
    folder.mkdir(parents=True)
    derma = one_each(7)
    derma["train"][3] = 7
    derma["test"][0] = 255
    np.savez_compressed(folder / "dermamnist_64.npz", **arrays(64, (64, 64, 3), derma))
    np.savez_compressed(folder / "dermamnist.npz", **arrays(28, (28, 28, 3), one_each(7)))
    chest = {split: np.eye(14, dtype=int)[: COUNTS[split]].tolist() for split in COUNTS}
    chest["train"][0] = [0] * 14
    chest["train"][1][6] = 1
    chest["val"][1][0] = 2
    np.savez_compressed(folder / "chestmnist.npz", **arrays(28, (28, 28), chest))
    np.savez_compressed(folder / "organmnist3d.npz", **arrays(28, (28, 28, 28), one_each(11)))
    counts = {}
    for split, pictures, xrays, volumes in (("train", 3, 4, 4), ("val", 2, 1, 2), ("test", 2, 3, 3)):
        counts[split, "medmnist/classification"] = pictures + volumes
        counts[split, "medmnist/multilabel"] = xrays
        counts[split, "medmnist/presence"] = 14 * xrays
    return Root(folder, counts, {"train": 1, "val": 1, "test": 1}, names_paths=False)
