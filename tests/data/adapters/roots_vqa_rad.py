"""A tiny VQA-RAD: its JSON with the real field names, and its folder of images."""

import json
from pathlib import Path

from PIL import Image as Picture

from adapter_root import Root


def item(
    qid: int, image: str, text: str, answer: object, kind: str, phrase: str = "freeform", rephrase: str = "NULL"
) -> dict:
    """Return one row as it is published."""
    return {
        "qid": qid,
        "phrase_type": phrase,
        "qid_linked_id": "03f451ca-de62-4617-9679-e836026a7642",
        "image_case_url": f"https://medpix.nlm.nih.gov/case?id={image.removesuffix('.jpg')}",
        "image_name": image,
        "image_organ": "HEAD",
        "evaluation": "not evaluated",
        "question": text,
        "question_rephrase": rephrase,
        "question_relation": "NULL",
        "question_frame": "NULL",
        "question_type": "PRES",
        "answer": answer,
        "answer_type": kind,
    }


def rows() -> list[dict]:
    """Return the rows; four are wrong: no phrase type, none that is known, a path outside, no answer type."""
    without = item(6, "synpic1.jpg", "Is a field missing?", "Yes", "CLOSED")
    del without["phrase_type"]
    return [
        item(0, "synpic1.jpg", "Are regions of the brain infarcted?", "Yes", "CLOSED"),
        item(1, "synpic1.jpg", "How many lesions are there?", 3, "OPEN ", "para"),
        item(2, "synpic2.jpg", "Is it axial or sagittal?", "axial", "CLOSED ", "freeform"),
        item(3, "synpic2.jpg", "What is the lesion?", "a stroke", "OPENED", "freeform"),
        item(4, "synpic1.jpg", "Is the brain swollen?", "no", "CLOSED", "test_freeform", "Is there edema?"),
        item(5, "synpic3.jpg", "Where is the mass?", "left lobe", "OPEN", "test_para"),
        without,
        item(7, "synpic1.jpg", "Which phrase is this?", "none", "OPEN", "sonnet"),
        item(8, "../../outside.png", "Is this outside?", "yes", "CLOSED"),
        item(9, "synpic3.jpg", "Which type is this?", "none", "?", "test_para"),
    ]


def write(folder: Path) -> Path:
    """Write the tree."""
    images = folder / "VQA_RAD Image Folder"
    images.mkdir(parents=True)
    for number in (1, 2, 3):
        Picture.new("L", (20, 20), 40 * number).save(images / f"synpic{number}.jpg")
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows(), indent=2))
    return folder


def build(folder: Path) -> Root:
    """Both splits, four rows wrong."""
    return Root(write(folder), {("train", "vqa_rad/vqa"): 4, ("test", "vqa_rad/vqa"): 2}, {"train": 3, "test": 1})
