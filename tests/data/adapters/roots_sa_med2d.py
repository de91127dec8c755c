"""A tiny SA-Med2D-20M: three data sets, masks with and without instances, and the known kinds of bad masks."""

import json
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from adapter_root import Root

SIZE = (48, 64)  # height, width
CLASSES = {
    "ACDC": {"left_heart_ventricle": "0001", "right_heart_ventricle": "0002", "union_heart": "0003"},
    "Totalsegmentator_dataset": {"kidney_left": "0007", "liver": "0013"},
    "ichallenge_adam_task2": {"optic_disk": "0001"},
}


def png(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(values).save(path)


def mask(*boxes: tuple[int, int, int, int], size: tuple[int, int] = SIZE, value: int = 255) -> np.ndarray:
    """Return a mask that is `value` inside some boxes (x0, y0, x1, y1), upper corner exclusive."""
    values = np.zeros(size, np.uint8)
    for x0, y0, x1, y1 in boxes:
        values[y0:y1, x0:x1] = value
    return values


HEART = "mr_00--ACDC--patient001_frame01--x_0006"
BODY = "ct_00--Totalsegmentator_dataset--s0011--with--dashes--z_0100"
EYE = "fundus_photography--ichallenge_adam_task2--A0001--2d_none"
OTHER = "ct_00--Totalsegmentator_dataset--s0042--z_0003"

MASKS = {
    HEART: {
        "0001_000": mask((4, 5, 14, 25), value=1),
        "0002_000": mask((20, 5, 30, 25), (40, 30, 44, 40), (60, 1, 61, 2)),  # two parts and a speck
        "0003_000": mask((4, 5, 30, 25)),  # the union
    },
    BODY: {
        "0007_000": mask((0, 0, 10, 10)),
        "0007_001": mask((20, 20, 40, 48), (50, 0, 64, 5)),  # an instance in two pieces
        "0013_000": mask(),
        "0013_001": mask((0, 0, 64, 48)),
        "0013_002": mask((0, 0, 9, 9), size=(24, 32)),
        "0099_000": mask((0, 0, 9, 9)),  # no such class
    },
    EYE: {"0001_000": mask((0, 0, 60, 40))},
    OTHER: {"0013_000": mask((1, 2, 33, 34))},
}


def write(folder: Path) -> Path:
    data = {}
    for stem, masks in MASKS.items():
        png(folder / "images" / f"{stem}.png", np.full((*SIZE, 3), 90, np.uint8))
        for name, values in masks.items():
            png(folder / "masks" / f"{stem}--{name}.png", values)
        data[f"images/{stem}.png"] = [f"masks/{stem}--{name}.png" for name in masks]
    data[f"images/{OTHER}.png"] += [f"masks/{HEART}--0001_000.png", f"masks/{OTHER}--13.png"]
    data["images/no_name.png"] = []
    data["../../outside.png"] = []
    (folder / "SAMed2D_v1.json").write_text(json.dumps(data))
    (folder / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(CLASSES))
    return folder


def write_prepared(folder: Path) -> Path:
    """Write Uni-Med's folders."""
    for split, stem in (("train", HEART), ("test", BODY), ("test", "0001")):
        png(folder / f"images_small_{split}" / "ct" / f"{stem}.png", np.full((*SIZE, 3), 90, np.uint8))
        regions = folder / f"regions_small_{split}" / "ct" / f"{stem}.json"
        regions.parent.mkdir(parents=True, exist_ok=True)
        regions.write_text('[{"liver_tumor": [3, 4, 20, 10]}, {"liver": [1, 1, 0, 5]}]')
    return folder


def build(folder: Path) -> Root:
    """All in training: which cases are drawn for test has its own test."""
    tasks = ("rec", "reg")
    counts = {("train", f"sa_med2d/{task}"): 6 for task in tasks}
    # the union, five of BODY's, the eye, two names of OTHER, an image without name, one outside
    return Root(write(folder), counts, {"train": 1 + 4 + 1 + 2 + 2}, {"test_share": 0.0})
