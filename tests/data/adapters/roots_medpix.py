"""A tiny MedPix as RadFM prepared it: three lists per split and a flat folder of pictures."""

import csv
from pathlib import Path

from PIL import Image as Picture

from adapter_root import Root

ROWS = {
    "MedPix_single_train": [
        ("name", "context", "type"),
        ("synpic1.png", "Axial CT shows a mass, left", "caption"),
        ("synpic1.png", "CT w/contrast (IV)", "modality"),
        ("synpic1.png", "Axial", "plane"),
        ("synpic2.png", "", "caption"),
        ("../../outside.png", "outside", "caption"),
        ("synpic2.png", "red", "colour"),
    ],
    "MedPix_single_test": [("name", "context", "type"), ("synpic3.png", "Frontal radiograph", "caption")],
    "MedPix_muli_train": [
        ("name", "context", "type", "history"),
        ("synpic1.png,synpic2.png", "• a mass\u2028• an effusion", "findings", "55 year old with cough."),
        ("synpic1.png, synpic2.png", "Lymphoma", "diagnosis", ""),
        ("synpic1.png", "Lymphoma\nSarcoid", "ddx", ""),
        ("synpic1.png", "Biopsy", "dxHow", ""),
        ("synpic1.png", "Chemotherapy", "txFollowup", ""),
        ("synpic1.png", "Fever", "exam", ""),
        ("synpic1.png", "This is common.", "discussion", ""),
        ("", "no pictures", "findings", ""),
    ],
    "MedPix_muli_test": [("name", "context", "type", "history"), ("synpic3.png", "clear", "findings", "")],
    "MedPix_questions_train": [
        ("question", "answer", "explanation", "name"),
        ("What is the sign?", "Halo", "It is seen in angioinvasion", "synpic2.png"),
        ("What is this?", "", "", "synpic2.png"),
    ],
    "MedPix_questions_test": [("question", "answer", "explanation", "name"), ("And here?", "None", "", "synpic3.png")],
}


def write(folder: Path) -> Path:
    """Write the tree."""
    (folder / "images").mkdir(parents=True)
    for number in (1, 2, 3):
        Picture.new("L", (20, 20), 40 * number).save(folder / "images" / f"synpic{number}.png")
    for name, rows in ROWS.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    return folder


def build(folder: Path) -> Root:
    """All lists; five rows are wrong: three cells empty, a path outside, a type nobody knows."""
    cases = ("diagnosis", "findings", "exam", "discussion", "differential", "method", "treatment")
    counts = {("train", f"medpix/{task}"): 1 for task in ("report", "modality", "plane", "vqa", *cases)}
    counts |= {("test", f"medpix/{task}"): 1 for task in ("report", "findings", "vqa")}
    return Root(write(folder), counts, {"train": 5})
