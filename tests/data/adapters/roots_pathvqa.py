"""A tiny PathVQA: the original tree with its pickles, and the Parquet copy."""

import io
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as Picture

from adapter_root import Root


def jpeg(shade: int) -> bytes:
    """Return a picture file."""
    buffer = io.BytesIO()
    Picture.new("RGB", (24, 16), (shade, 60, 120)).save(buffer, "JPEG")
    return buffer.getvalue()


def item(image: str, number: int, text: str, answer: str, kind: str = "other") -> dict:
    """Return one row of {split}_vqa.pkl as it is published."""
    return {
        "answer_type": kind,
        "img_id": image,
        "label": {answer: 1},
        "question_id": 100422000 + number,
        "question_type": text.split()[0],
        "sent": text,
    }


def rich() -> dict[str, list]:
    """Return the rows of each {split}_vqa.pkl, four of the training rows wrong."""
    without = item("train_0001", 3, "what is missing?", "a field")
    del without["sent"]
    return {
        "train": [
            item("train_0001", 0, "where are liver stem cells (oval cells) located?", "in the canals of hering"),
            item("train_0001", 1, "are bile duct cells seen?", "yes", "yes/no"),
            item("train_0002", 2, "how many nuclei are there?", "2", "number"),
            without,
            item("../../../../outside", 4, "is this outside?", "no", "yes/no"),
            item("train_0002", 5, "what is this?", "a lobule", "essay"),
            ["no", "dict"],
        ],
        "val": [item("val_0001", 6, "does it say yes?", "yes", "other")],
        "test": [item("test_0001", 7, "is it stained?", "no", "yes/no"), item("test_0001", 8, "what is it?", "fat")],
    }


def write(folder: Path, top: str = "pvqa") -> Path:
    """Write the original tree, its pickles as Python 3 writes them."""
    for split, rows in rich().items():
        images = folder / top / "images" / split
        images.mkdir(parents=True)
        for number in (1, 2):
            (images / f"{split}_{number:04}.jpg").write_bytes(jpeg(number * 50))
        (folder / top / "qas").mkdir(exist_ok=True)
        (folder / top / "qas" / f"{split}_vqa.pkl").write_bytes(pickle.dumps(rows, 3))
    return folder


def write_parquet(folder: Path, rows: dict[str, list[tuple]], hashed: str = "") -> Path:
    """Write (picture, question, answer) rows per split as the copy on the hub keeps them."""
    (folder / "data").mkdir(parents=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("question", pa.string()), ("answer", pa.string())])
    for split, items in rows.items():
        cells = [
            {"image": None if content is None else {"bytes": content, "path": None}, "question": text, "answer": answer}
            for content, text, answer in items
        ]
        table = pa.Table.from_pylist(cells, schema)
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001{hashed}.parquet")
    return folder


def build(folder: Path) -> Root:
    """The original tree; four rows of the training list are wrong."""
    counts = {("train", "pathvqa/vqa"): 3, ("val", "pathvqa/vqa"): 1, ("test", "pathvqa/vqa"): 2}
    return Root(write(folder), counts, {"train": 4})
