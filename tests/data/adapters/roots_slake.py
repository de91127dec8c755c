"""A tiny SLAKE: four images, their questions in two languages, and the boxes of their organs."""

import json
from pathlib import Path

from PIL import Image as Picture

from adapter_root import Root

SIZE = (64, 48)


def question(image: int, qid: int, text: str, answer: str, kind: str = "OPEN", language: str = "en", **other) -> dict:
    """Return one row as it is published."""
    return {
        "img_id": image,
        "img_name": f"xmlab{image}/source.jpg",
        "question": text,
        "answer": answer,
        "q_lang": language,
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": kind,
        "base_type": "vqa",
        "content_type": "Modality",
        "triple": ["vhead", "_", "_"],
        "qid": qid,
        **other,
    }


def rows() -> dict[str, list[dict]]:
    """Return the rows of each file; the Chinese ones have a partition of their own."""
    broken = question(1, 3, "What is missing here?", "a field")
    del broken["question"]
    return {
        "train": [
            question(1, 0, "What modality is used to take this image?", "MRI"),
            question(1, 1, "Does the picture contain liver?", "Yes ", "CLOSED"),
            question(2, 2, "Which is bigger in this image, liver or lung?", "Lung", "CLOSED"),
            broken,
            question(1, 1622, "Where is the brain?", ""),
            question(1, 4, "Whose image is this?", "none", img_name="../../outside.png"),
            question(1, 5, "图像的扫描方式是什么?", "核磁共振", language="zh"),
            question(4, 6, "图片中包含肝脏吗?", "是", "CLOSED", "zh"),
        ],
        "validate": [
            question(3, 7, "Which part of the body does this image belong to?", "Liver, Spleen"),
            question(2, 8, "图片中包含肺吗?", "不是", "CLOSED", "zh"),
        ],
        "test": [question(4, 9, "Is this a CT?", "No", "CLOSED"), question(4, 10, "图像是什么?", "CT", language="zh")],
    }


def write(folder: Path, lists: bool = False) -> Path:
    """Write the tree; with `lists` the folders' names in train.txt, validate.txt and test.txt too."""
    folder.mkdir(parents=True)
    for name, questions in rows().items():
        (folder / f"{name}.json").write_text(json.dumps(questions, ensure_ascii=False, indent=1), "utf-8")
    boxes = [{"Liver": [3, 4, 20, 10]}, {"Lung": [0, 0, 64, 48]}, {"Lung": [40.5, 2, 10, 30]}]
    for number in range(1, 5):
        image = folder / "imgs" / f"xmlab{number}"
        image.mkdir(parents=True)
        Picture.new("RGB", SIZE, (number * 40, 90, 60)).save(image / "source.jpg")
        (image / "detection.json").write_text(json.dumps(boxes if number in (1, 4) else boxes[:1]))
    (folder / "imgs/xmlab2/detection.json").write_text('[{"Liver": [3, 4, 0, 10]}, {"Heart": [1, 1, 9, 9]}]')
    if lists:
        for name, images in {"train": (1, 2), "validate": (3,), "test": (4,)}.items():
            (folder / f"{name}.txt").write_text("".join(f"xmlab{image}\n" for image in images))
    return folder


def build(folder: Path) -> Root:
    """English and the boxes; four rows are wrong: no question, no answer, a path outside, an empty box."""
    counts = {
        ("train", "slake/vqa"): 3,
        ("val", "slake/vqa"): 1,
        ("test", "slake/vqa"): 1,
        **{
            (split, f"slake/{task}"): n
            for split, n in (("train", 4), ("val", 1), ("test", 3))
            for task in ("rec", "reg")
        },
    }
    return Root(write(folder), counts, {"train": 4})
