"""A data set as `datasets` lays it out for the hub: Parquet shards per split, pictures inside, classes as numbers."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as Picture

from adapter_root import Root

FEATURES = {
    "picture": {"_type": "Image"},
    "question": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["benign", "malignant"], "_type": "ClassLabel"},
}


def png(grey):
    file = io.BytesIO()
    Picture.new("L", (8, 6), grey).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(path, pictures, labels):
    table = pa.table({"picture": pictures, "question": ["What is it?"] * len(labels), "label": labels})
    about = json.dumps({"info": {"features": FEATURES}})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": about}), path)


def build(folder: Path) -> Root:
    write(folder / "data/train-00000-of-00002.parquet", [png(1), png(2), None], [0, 1, 1])
    write(folder / "data/train-00001-of-00002.parquet", [png(1), {"bytes": None, "path": "../../outside.png"}], [1, 0])
    write(folder / "data/validation-00000-of-00001.parquet", [png(3)], [0])
    write(folder / "data/test-00000-of-00001.parquet", [png(4), png(5), png(6)], [0, -1, 2])
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    counts = {("train", "hf/qa"): 3, ("val", "hf/qa"): 1, ("test", "hf/qa"): 1}
    return Root(folder, counts, {"train": 2, "test": 2}, {"image": "picture", "answer": "label"})
