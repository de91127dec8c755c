"""A tiny M3D-Data: captions, questions, masks in both forms and referred ones; arrays of a few voxels."""

import csv
import io
import json
from pathlib import Path

import numpy as np

from adapter_root import Root

SHAPE = (6, 10, 12)  # slices, rows, columns
QUESTION = ["Image Path", "Text", "Question Type", "Question", *(f"Choice {letter}" for letter in "ABCD"),
            "Answer", "Answer Choice"]  # fmt: skip


def volume(path: Path, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> None:
    """Write [1, D, H, W] with values 0..1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).random((1, *shape), np.float32)
    values.flat[:2] = 0, 1
    np.save(path, values)


def mask(box: tuple[int, ...], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return [1, D, H, W], True inside (x0, y0, z0, x1, y1, z1)."""
    x0, y0, z0, x1, y1, z1 = box
    values = np.zeros((1, *shape), bool)
    values[0, z0:z1, y0:y1, x0:x1] = True
    return values


def table(path: Path, header: list[str], rows: list[list]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.getvalue())


def captions(folder: Path) -> None:
    base = folder / "M3D_Cap_npy"
    data = {"train": [], "validation": [], "test": [], "test1k": []}
    for number, key in enumerate(("train", "train", "validation", "test", "test")):
        case = f"ct_quizze/{number:06}"
        volume(base / case / "Axial_C__portal_venous_phase.npy", number)
        (base / case / "text.txt").write_text(f"Case {number}: a cyst in\n the liver.")
        data[key].append({"image": f"{case}/Axial_C__portal_venous_phase.npy", "text": f"{case}/text.txt"})
    data["test1k"] = data["test"][:1]
    data["train"] += [{"image": "../../outside.npy", "text": "ct_quizze/000000/text.txt"}, {"image": "x.npy"}]
    (base / "M3D_Cap.json").write_text(json.dumps(data))
    (base / "M3D_Cap_eh.json").write_text(json.dumps({"hard_test": data["test"][1:]}))


def questions(folder: Path) -> None:
    image = "M3D_Cap_npy/ct_quizze/{:06}/Axial_C__portal_venous_phase.npy"
    rows = {
        "train": [0, 1],
        "val": [2],
        "test": [3, 4],
        "test5k": [4],
    }
    for part, numbers in rows.items():
        lines = [
            [
                image.format(n),
                "text",
                1,
                "Which plane is shown?",
                "Axial",
                "Coronal",
                "Sagittal",
                "Oblique",
                "Coronal",
                "B",
            ]
            for n in numbers
        ]
        if part == "train":
            lines[1][6] = ""  # one choice less: an open question still
            lines.append([image.format(0), "text", 3, "Which organ?", "a", "b", "c", "d", "", "A"])
        table(folder / f"M3D-VQA/M3D_VQA_{part}.csv", QUESTION, lines)
    header = ["Image Path", "Text", "Question Type", "Question", "Answer"]
    table(folder / "M3D-VQA/M3D_VQA_yn_train.csv", header, [[image.format(0), "text", 4, "Is there a cyst?", "Yes"]])


def segments(folder: Path) -> None:
    """Write M3D-Seg as M3D's script prepares it: lists with the paths of its authors' disk."""
    base = folder / "M3D_Seg_npy"
    lists = {"train": [], "test": []}
    for key, case in (("train", "1"), ("test", "2")):
        volume(base / "0004" / case / "image.npy", int(case))
        (base / "0004" / case / "masks").mkdir()
        for number, box in ((0, (1, 2, 3, 8, 7, 5)), (2, (4, 0, 0, 12, 10, 1))):
            np.save(base / "0004" / case / "masks" / f"mask_{number}.npy", mask(box))
            label = f"0004/{case}/masks/mask_{number}.npy"
            lists[key].append({"image": f"PATH/data/M3D_Seg_npy/0004/{case}/image.npy", "label": label})
    np.save(base / "0004/1/masks/mask_1.npy", mask((0, 0, 0, 0, 0, 0)))
    np.save(base / "0004/1/masks/mask_7.npy", mask((0, 0, 0, 1, 1, 1)))
    lists["train"] += [{"image": "0004/1/image.npy", "label": f"0004/1/masks/mask_{n}.npy"} for n in (1, 7)]
    labels = {"0": "background", "1": "kidney", "2": "kidney tumor", "3": "kidney cyst"}
    (base / "0004" / "0004.json").write_text(json.dumps({"name": "0004 Dataset", "labels": labels, **lists}))


def sparse(path: Path, masks: np.ndarray) -> None:
    """Write [C, X, Y, Z] as M3D-Seg is published: scipy's compressed sparse rows, the shape in the name."""
    from scipy import sparse as matrices

    matrices.save_npz(path / f"mask_{masks.shape}.npz", matrices.csr_matrix(masks.reshape(len(masks), -1)))


def referred(folder: Path) -> None:
    base = folder / "M3D_RefSeg_npy"
    header = ["Image", "Mask", "Mask_ID", "Question_Type", "Question", "Answer"]
    for case in ("s0000", "s0001"):
        volume(base / case / "ct.npy", 7)
        values = mask((2, 3, 1, 6, 9, 4)).astype(np.float32) * 2
        values[0, 5, 0, 0] = 1
        np.save(base / case / "mask.npy", values)
    rows = [
        ["s0000/ct.nii.gz", "s0000/mask.nii.gz", 2, 0, "Where is the lesion?", "Sure, it is [SEG]."],
        ["s0000/ct.nii.gz", "s0000/mask.nii.gz", 1, 1, "Show the stone.", "[SEG]"],
        ["s0000/ct.nii.gz", "s0000/mask.nii.gz", 9, 1, "Show the other.", "[SEG]"],
    ]
    table(base / "M3D_RefSeg.csv", header, rows)
    row = ["M3D_RefSeg_npy/s0001/ct.npy", "M3D_RefSeg_npy/s0001/mask.npy", 2, 0, "Where?", "Here"]
    table(base / "M3D_RefSeg_test.csv", header, [row])


def write(folder: Path) -> Path:
    captions(folder)
    questions(folder)
    segments(folder)
    referred(folder)
    return folder


def build(folder: Path) -> Root:
    """Wrong in training: a path outside, no text, no answer, a choice less, and masks: empty, nameless, no such id."""
    counts = {
        **{("train", f"m3d/{task}"): 2 for task in ("caption", "vqa_open", "rec", "reg", "refseg")},
        **{("train", f"m3d/{task}"): 1 for task in ("vqa_closed", "vqa_yn")},
        **{("val", f"m3d/{task}"): 1 for task in ("caption", "vqa_closed", "vqa_open")},
        **{("test", f"m3d/{task}"): 2 for task in ("caption", "vqa_closed", "vqa_open", "rec", "reg")},
        ("test", "m3d/refseg"): 1,
    }
    return Root(write(folder), counts, {"train": 2 + 2 + 2 + 1})
