"""An evaluation as one HTML file that needs nothing else: scores beside controls, confusions, curves, a gallery."""

import base64
import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image as PillowImage

from medmvl.core.atomic import atomic_file
from medmvl.eval.metrics.text import normalise
from medmvl.eval.table import CONTROLS, pooled
from medmvl.imaging.intensity import to_display
from medmvl.imaging.montage import montage
from medmvl.imaging.read import read_image
from medmvl.imaging.volume import Volume

SCORES, PREDICTIONS, REPORT = "scores.json", "predictions.jsonl", "report.html"
_PAGE = Path(__file__).parent / "page"
_SHOWN_PIXELS = 384  # longest side of a picture in the gallery
_MONTAGE_PIXELS = 264  # width of a volume's slices in the gallery, laid out side by side
_GREYS = 8  # volumes are shown in 256 / 8 greys, which halves the page
_MOST_LABELS = 8  # answers that a confusion matrix has room for
_CURVE_POINTS = 300

Record = Mapping[str, Any]
Card = dict[str, Any]


def write_report(folder: str | Path, logs: Sequence[str | Path] = (), each: int = 6) -> Path:
    """Write report.html beside scores.json and predictions.jsonl.

    The page is self-contained and opens no connection. All text of data, model and user is escaped, and scripts other
    than the page's own are refused by its content security policy.

    Args:
        folder: what `evaluate` wrote to.
        logs: training logs, JSON lines with "loss", "step", "stage" and "kind" ("train" or "validation").
        each: right and wrong answers shown per task, at most so many of either.

    Returns:
        The path of the page.

    Raises:
        ValueError: a file is no JSON.
        DiskFullError: it could not be written.
    """
    folder = Path(folder)
    scores = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    records: dict[str, dict[str, dict[str, Record]]] = defaultdict(lambda: defaultdict(dict))
    for record in _lines(folder / PREDICTIONS):
        records[record["task"]][record["control"]][record["id"]] = record
    script = (_PAGE / "report.js").read_text(encoding="utf-8")
    page = Environment(loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = page.get_template("report.html.jinja").render(
        provenance=scores["provenance"],
        rows=[_row(name, entry) for name, entry in scores["tasks"].items()],
        controls=CONTROLS,
        pooled=pooled(scores),
        excluded=scores["excluded"],
        confusions=[c for name, entry in scores["tasks"].items() if (c := _confusion(entry, records[name][""]))],
        curves=_curves(logs),
        cards=_mixed([_cards(name, entry, records[name], each) for name, entry in scores["tasks"].items()]),
        style=(_PAGE / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    with atomic_file(folder / REPORT) as file:
        file.write(text)
    return folder / REPORT


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not valid JSON: {error}") from None


def _row(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the table of scores: the primary metric and what the controls have of it."""
    metric = entry["primary"]
    return {
        "name": name,
        "entry": entry,
        "metric": metric,
        "score": entry["metrics"].get(metric),
        "controls": {control: entry["controls"].get(control, {}).get(metric) for control in CONTROLS},
        "others": {other: value for other, value in entry["metrics"].items() if other != metric},
    }


def _confusion(entry: Mapping[str, Any], records: Mapping[str, Record]) -> dict[str, Any] | None:
    """Count answers per true answer, for tasks whose true answers are a few words; further answers are "other"."""
    if entry["primary"] != "accuracy_strict":
        return None
    pairs = [(normalise(r["reference"]), normalise(r["parsed"] or "")) for r in records.values()]
    labels = sorted({truth for truth, _ in pairs})
    if not 2 <= len(labels) <= _MOST_LABELS:
        return None
    counts = Counter((truth, given if given in labels else "other") for truth, given in pairs)
    columns = [*labels, "other"] if any(given == "other" for _, given in counts) else labels
    totals = Counter(truth for truth, _ in pairs)
    rows = [
        (truth, [(counts[truth, given], counts[truth, given] / totals[truth]) for given in columns]) for truth in labels
    ]
    return {"title": entry["title"], "columns": columns, "rows": rows}


def _curves(logs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return one panel per stage of every log, as far as it logged a training loss."""
    panels = []
    for log in map(Path, logs):
        stages: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: {"train": [], "validation": []})
        for number, row in enumerate(_lines(log)):
            kind = row.get("kind", "train")
            if kind in ("train", "validation") and isinstance(row.get("loss"), int | float):
                stages[str(row.get("stage", log.parent.name))][kind].append((row.get("step", number), row["loss"]))
        panels += [
            _curve(name, losses["train"], losses["validation"]) for name, losses in stages.items() if losses["train"]
        ]
    return panels


def _curve(
    name: str, train: Sequence[tuple[float, float]], validation: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Thin out and smooth one stage's losses, in a frame of 100 x 100 with the loss from 0 upwards."""
    steps, values = np.array(train, dtype=np.float64).T
    keep = np.unique(np.linspace(0, len(steps) - 1, _CURVE_POINTS).astype(int))
    width = max(1, len(values) // 25)
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    smooth = np.convolve(padded, np.ones(width) / width, mode="valid")
    top = float(np.quantile(values, 0.995)) or 1.0
    span = max(steps[-1] - steps[0], 1)

    def line(points: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{100 * (x - steps[0]) / span:.2f},{100 - 100 * min(y / top, 1):.2f}" for x, y in points)

    return {
        "name": name,
        "raw": line(zip(steps[keep], values[keep], strict=True)),
        "smooth": line(zip(steps[keep], smooth[keep], strict=True)),
        "validation": line(validation),
        "top": top,
        "last": float(smooth[-1]),
        "last_validation": validation[-1][1] if validation else None,
        "first_step": int(steps[0]),
        "last_step": int(steps[-1]),
    }


def _cards(name: str, entry: Mapping[str, Any], records: Mapping[str, Mapping[str, Record]], each: int) -> list[Card]:
    """Draw right and wrong answers at random, the same ones every time, and lay them out in turn."""
    metric = entry["primary"]
    enough = 0.5 if metric.endswith(("iou_mean", "iou50")) else 1.0
    outcomes: dict[bool, list[Card]] = {True: [], False: []}
    for right, chosen in outcomes.items():
        found = [r for r in records[""].values() if (r["scores"][metric] >= enough) == right]
        draw = np.random.default_rng(list(f"{name} {right}".encode()))
        for place in draw.permutation(len(found))[:each]:
            record = found[place]
            asked = [
                control for control in CONTROLS if control != "majority" and record["id"] in records.get(control, {})
            ]
            chosen.append(
                {
                    "task": name,
                    "title": entry["title"],
                    "right": right,
                    "score": record["scores"][metric],
                    "record": record,
                    "picture": _picture(record),
                    "under": {control: records[control][record["id"]]["answer"] for control in asked},
                }
            )
    return _mixed(list(outcomes.values()))


def _mixed(lists: Sequence[Sequence[Card]]) -> list[Card]:
    """Return the first of every list, then the second of every list, and so on."""
    return [card for row in zip_longest(*lists) for card in row if card is not None]


def _boxes(record: Record) -> list[tuple[str, list[float]]]:
    """Return (kind, coords) of all boxes to draw: asked about, true, predicted."""
    boxes = [("asked", box) for box in record["question_boxes"]]
    boxes += [(kind, record[key]) for kind, key in (("true", "reference"), ("predicted", "parsed"))]
    return [(kind, box) for kind, box in boxes if isinstance(box, list)]


def _picture(record: Record) -> dict[str, Any] | None:
    """Return what a card shows of the first medium, None without one.

    Returns:
        Either "error", why its file cannot be shown; or "data", a PNG as data address, "width" and "height" of the
        frame to draw in, and "boxes", (kind, x0, y0, x1, y1) in that frame: the file's for pictures, the montage's for
        volumes.
    """
    if not record["media"]:
        return None
    boxes = _boxes(record)
    try:
        shown = read_image(record["media"][0])
        if isinstance(shown, Volume):
            found = [(kind, box) for kind, box in boxes if len(box) == 6]
            laid = montage(shown, [box for _, box in found], width=_MONTAGE_PIXELS)
            pixels = laid.pixels // _GREYS * _GREYS
            drawn = [(kind, *rectangle) for kind, box in found for rectangle in laid.rectangles(box)]
        else:
            pixels = to_display(shown)
            drawn = [(kind, *box) for kind, box in boxes if len(box) == 4]
    except (ValueError, OSError) as error:
        return {"error": str(error)}
    picture = PillowImage.fromarray(pixels)
    width, height = picture.size
    picture.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS))
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return {"data": f"data:image/png;base64,{data}", "width": width, "height": height, "boxes": drawn}
