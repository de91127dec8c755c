"""A tiny CT-RATE: three patients in training, two in validation, with tables, labels and questions as published."""

import csv
import io
import json
from pathlib import Path

import nibabel
import numpy as np

from adapter_root import Root

LABELS = [
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis", "Lung nodule",
    "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern",
    "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
]  # fmt: skip

VOLUMES = {
    "train": ["train_1_a_1", "train_1_a_2", "train_2_a_1", "train_2_b_2", "train_3_a_1"],
    "valid": ["valid_1_a_1", "valid_1_a_2", "valid_2_a_1"],
}
INTERCEPTS = {"train_1_a_2": -8192, "valid_2_a_1": -8192}


def table(path: Path, header: list[str], rows: list[list]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.getvalue(), "utf-8")


def volume(path: Path, values: np.ndarray) -> None:
    """Write int16 values [x, y, z] as CT-RATE does: the header says slope 1, intercept 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values.astype(np.int16), np.diag([-0.7, -0.7, 1.5, 1]))
    image.header.set_slope_inter(1, 0)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def turn(question: str, answer: str, kind: str = "conversation") -> list[dict]:
    return [{"from": "human", "value": question, "type": kind}, {"from": "gpt", "value": answer}]


def item(key: str, image: str | None, *turns: list[dict]) -> dict:
    named = {} if image is None else {"image": f"{image}.nii.gz"}
    return {"id": key, **named, "conversations": [part for one in turns for part in one]}


def questions(split: str) -> list[dict]:
    """Return the VQA file of one split."""
    one, two = f"{split}_1_a_1", f"{split}_2_a_1"
    return [
        item(
            "long_answer_0",
            one,
            turn("<image>\nWhat do the lungs show?<long_answer>", "A nodule in the left upper lobe."),
            turn("Is it new?<long_answer>", "That cannot be told."),
            turn("And the heart?<long_answer>", "Normal."),
        ),
        item("short_answer_0", two, turn("<image>\n Where is it?<short_answe>", "Left lung", "location")),
        item(
            "multiple_choice_0",
            one,
            turn(
                "<image>\n Which finding is present? (a) Normal aeration (b) A few nodules (c) Effusion (d) "
                "Emphysema<multiple_choice>",
                "(b) A few nodules",
                "multiple_choice",
            ),
            turn("Which side? (a) Left (b) Right<multiple_choice>", "(a) Left", "multiple_choice"),
        ),
        item(
            "report_generation_0",
            one,
            turn(
                "<image>\nProduce the report for this CT image.<report_generation>",
                "Findings: A nodule. Impression: Nodule.",
                "report_generation",
            ),
        ),
        item("text_only_0", None, turn("What is emphysema?<long_answer>", "Destroyed air spaces.", "free_response")),
    ]


def write(folder: Path, *trees: str) -> Path:
    """Write the data set; `trees`: "fixed" (HU are stored), "raw" (they are not)."""
    base = folder / "dataset"
    for split, names in VOLUMES.items():
        longer = "train" if split == "train" else "validation"
        for name in names:
            place = "/".join(["_".join(name.split("_")[:count]) for count in (2, 3)])
            values = np.full((4, 4, 4), -1000)
            values[1:3, 1:3] = 40
            intercept = INTERCEPTS.get(name, -1024)
            if "fixed" in trees:
                volume(base / f"{split}_fixed" / place / f"{name}.nii.gz", values)
            if "raw" in trees:
                volume(base / split / place / f"{name}.nii.gz", values - intercept)
        rows = [[f"{name}.nii.gz", "", "CT", f"Lungs of {name[:-2]}.\nClear.", "Normal."] for name in names]
        rows[-1][4] = "Not given."
        header = ["VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN"]
        if split == "train":
            rows[3][3:] = ["Not given.", ""]
            rows.append(["../../outside.nii.gz", "", "", "Someone else.", "Nobody."])
        table(base / "radiology_text_reports" / f"{longer}_reports.csv", header, rows)
        rows = [[f"{name}.nii.gz", *("1" if column == number else "0" for column in range(18))] for number, name in
                enumerate(names)]  # fmt: skip
        rows[0] = [f"{names[0]}.nii.gz", *"0" * 18]
        if split == "train":
            rows[2][5] = ""
        table(base / "multi_abnormality_labels" / f"{split}_predicted_labels.csv", ["VolumeName", *LABELS], rows)
        rows = [[f"{name}.nii.gz", "1.0", str(INTERCEPTS.get(name, -1024)), "[0.7, 0.7]", "1.5"] for name in names]
        header = ["VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing"]
        table(base / "metadata" / f"{longer}_metadata.csv", header, rows)
        (base / "vqa").mkdir(exist_ok=True)
        data = questions(split)
        if split == "train":
            data += [item("long_answer_1", "train_9", turn("<image>\nWhat?<long_answer>", "This."))]
            data += [item("long_answer_2", "train_1_a_1", turn("<image>\n<long_answer>", "This."))]
        (base / "vqa" / f"{split}_vqa.json").write_text(json.dumps(data, indent=1))
    (base / "metadata" / "no_chest_train.txt").write_text("train_3_a_1.nii.gz\n")
    return folder


def build(folder: Path) -> Root:
    """Fixed tree. Wrong in training: a volume without chest, no report, no label, a path outside, two questions."""
    counts = {
        **{("train", f"ct_rate/{task}"): count for task, count in (("report", 3), ("labels", 3), ("text", 1))},
        **{("val", f"ct_rate/{task}"): count for task, count in (("report", 3), ("labels", 3), ("text", 1))},
        **{("train", f"ct_rate/{task}"): 1 for task in ("long", "short", "choice")},
        **{("val", f"ct_rate/{task}"): count for task, count in (("long", 3), ("short", 1), ("choice", 2))},
    }
    return Root(write(folder, "fixed"), counts, {"train": 3 + 2 + 2})
