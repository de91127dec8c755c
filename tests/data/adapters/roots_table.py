"""A table with columns of the user's own names, which the options map."""

from pathlib import Path

from PIL import Image as Picture

from adapter_root import Root

ROWS = [
    'key,file,Q,A,options,who,set,area',
    'r1,a.png,What is it?,A CT.,,p1,train,',
    'r2,a.png;b.png,"Same, or\nnot?",no,yes;no,p2,valid,',
    'r3,b.png,Where is <box>?,"In the middle",,p3,test,"[[1, 2, 5, 6]]"',
    'r4,,What is it?,A CT.,,p1,train,',
    'r5,a.png,What is it?,,,p1,train,',
    'r6,../../outside.png,What is it?,A CT.,,p1,test,',
    'r7,a.png,What is it?,A CT.,,p1,holdout,',
    'r8,a.png,What is it?,A CT.,,p1,train,"[5, 2, 1, 6]"',
]  # fmt: skip


def build(folder: Path) -> Root:
    (folder / "pictures").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Picture.new("L", (8, 6), 90).save(folder / "pictures" / name)
    (folder / "mine.csv").write_text("\n".join(ROWS) + "\n")
    options = {
        "id": "key",
        "image": "file",
        "question": "Q",
        "answer": "A",
        "choices": "options",
        "patient": "who",
        "split": "set",
        "boxes": "area",
        "media_root": "pictures",
    }
    counts = {(split, "table/qa"): 1 for split in ("train", "val", "test")}
    return Root(folder / "mine.csv", counts, {"train": 4, "test": 1}, options)
