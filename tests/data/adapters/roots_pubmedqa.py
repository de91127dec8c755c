"""A tiny PubMedQA: its three parts, the official test decisions, one fold."""

import json
from pathlib import Path

from adapter_root import Root


def article(decision: str | None = "yes", **other) -> dict:
    """Return one article as it is published."""
    data = {
        "QUESTION": "Do statins reduce atrial fibrillation?",
        "CONTEXTS": ["Fibrillation is common.", "221 patients were followed."],
        "LABELS": ["BACKGROUND", "METHODS"],
        "MESHES": ["Humans", "Statins"],
        "YEAR": "2011",
        "LONG_ANSWER": "Statins may reduce it.",
    }
    return {**data, **({} if decision is None else {"final_decision": decision}), **other}


def write(folder: Path, cut: bool = False) -> Path:
    """Write the tree; with `cut` the two files of PQA-A that its authors' script makes."""
    without = article()
    del without["QUESTION"]
    labeled = {
        "100": article("yes"),
        "101": article("maybe"),
        "102": article("no"),
        "103": without,
        "104": article("perhaps"),
        "200": article("no"),
        "201": article("yes"),
        "202": article("yes"),
    }
    artificial = {"300": article("yes"), "301": article("no")}
    files = {
        "ori_pqal": labeled,
        "test_ground_truth": {"200": "no", "201": "yes", "202": "maybe"},
        "pqal_fold0/dev_set": {"101": labeled["101"]},
        "ori_pqaa": artificial,
        "ori_pqau": {"400": article(None)},
    }
    if cut:
        files |= {"pqaa_train_set": {"300": article("yes")}, "pqaa_dev_set": {"301": article("no")}}
    for name, data in files.items():
        path = folder / "data" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=4))
    return folder


def build(folder: Path) -> Root:
    """PQA-L with fold 0; three articles are wrong: no question, no such decision, one that is not the test set's."""
    counts = {
        (split, f"pubmedqa/{task}"): number
        for split, number in (("train", 2), ("val", 1), ("test", 2))
        for task in ("abstract", "question", "conclusion")
    }
    return Root(write(folder), counts, {"train": 2, "test": 1}, {"fold": 0}, names_paths=False)
