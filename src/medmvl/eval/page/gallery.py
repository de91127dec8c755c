"""The gallery: some answers of every task, right, partly right and wrong, with their pictures."""

import base64
import io
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import zip_longest
from typing import Any

from PIL import Image as PillowImage

from medmvl.eval.metrics.text import normalise
from medmvl.eval.page.lines import cut
from medmvl.eval.scale import scale_of
from medmvl.eval.table import CONTROLS, PROBES
from medmvl.imaging.intensity import to_display
from medmvl.imaging.montage import montage
from medmvl.imaging.read import read_image
from medmvl.imaging.volume import Volume

OUTCOMES = ("right", "partly", "wrong")
"""What can become of an answer."""
MOST_CARDS = 360
"""Cards on a page, at most."""
_PICTURE_BYTES = 4_000_000  # of all pictures of a page together, as they stand in it
_SHOWN_PIXELS = 384  # longest side of a picture
_MONTAGE_PIXELS = 264  # width of a volume's slices, laid out side by side
_QUALITY = 78  # of the pictures' WebP
_MOST_TEXT, _MOST_PROMPT = 1500, 4000  # characters of an answer and of a prompt
_MOST_TIMES = 4  # answers of one probe to one question, at most
_OVERLAP = ("iou", "giou")  # metrics of boxes, right from one half on
_NO_GRADES = ("options_ranked",)  # shares that say nothing of how right an answer is

Record = Mapping[str, Any]
Card = dict[str, Any]


@dataclass
class Chosen:
    """An answer of the gallery, and what the model said to the same question otherwise."""

    record: Record
    outcome: str
    score: str
    under: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


class Choice:
    """Some answers of one task, drawn at random, the same ones every time, in whatever order they come.

    As far as there is room, every modality and type of answer is among them. No more than `each` answers of an outcome
    are held at any time.

    Args:
        name: of the task.
        entry: the task's entry of scores.json.
        each: answers of each outcome, at most.
    """

    def __init__(self, name: str, entry: Mapping[str, Any], each: int) -> None:
        self._name, self._each = name, each
        self._graded = sorted(
            (metric for metric in entry["metrics"] if _is_graded(metric, entry)),
            key=lambda metric: (metric != entry["primary"], not metric.startswith("acc")),
        )
        self._counts: Counter[str] = Counter()
        self._kept: dict[str, dict[tuple[str, str], list[tuple[int, str, Chosen]]]] = {one: {} for one in OUTCOMES}

    def add(self, record: Record) -> None:
        """Take an answer to a question as it is, if it is its turn."""
        outcome, score = self._judge(record)
        self._counts[outcome] += 1
        rank = int.from_bytes(blake2b(f"{self._name}\0{record['id']}".encode(), digest_size=8).digest())
        kinds = self._kept[outcome]
        kept = kinds.setdefault((record["modality"], record["answer_type"]), [])
        insort(kept, (rank, record["id"], Chosen(record, outcome, score)), key=lambda one: one[:2])
        if sum(map(len, kinds.values())) > self._each:
            fullest = max(kinds, key=lambda kind: (len(kinds[kind]), kinds[kind][-1][0]))
            kinds[fullest].pop()
            if not kinds[fullest]:
                del kinds[fullest]

    def _judge(self, record: Record) -> tuple[str, str]:
        """Return the outcome, and the score where it is neither 0 nor 1."""
        metric = next((metric for metric in self._graded if metric in record["scores"]), None)
        if metric is None:
            same = normalise(str(record["parsed"] or "")) == normalise(str(record["reference"]))
            return ("right" if same else "wrong"), ""
        score = record["scores"][metric]
        enough = 0.5 if _is_overlap(metric) else 1.0
        outcome = "right" if score >= enough else "partly" if score > 0 else "wrong"
        return outcome, "" if score in (0, 1) else f"{score:.2f}"

    @property
    def counts(self) -> dict[str, int]:
        """Outcome -> number of all answers."""
        return {outcome: self._counts[outcome] for outcome in OUTCOMES}

    def chosen(self, first: int = 0) -> list[Chosen]:
        """Return the answers kept, outcomes in turn; `first` says which outcome begins."""
        lists = []
        for kinds in self._kept.values():
            kept = sorted((one for kind in kinds.values() for one in kind), key=lambda one: one[:2])
            if kept:
                lists.append([one for _, _, one in kept])
        turn = first % len(lists) if lists else 0
        return mixed(lists[turn:] + lists[:turn])


def _is_graded(metric: str, entry: Mapping[str, Any]) -> bool:
    """Tell whether a metric may say of one answer how right it is, from 0 to 1."""
    return metric not in _NO_GRADES and scale_of(metric, [entry["metrics"][metric]]).percent


def _is_overlap(metric: str) -> bool:
    return any(part in _OVERLAP for part in metric.split("_"))


def mixed(lists: Iterable[Sequence[Any]]) -> list[Any]:
    """Return the first of every list, then the second of every list, and so on."""
    return [one for row in zip_longest(*lists) for one in row if one is not None]


def note(chosen: Chosen, record: Record) -> None:
    """Keep what the model said to a chosen question under a control or a probe, which may ask several times."""
    said = chosen.under.setdefault(record["control"], [])
    if len(said) < _MOST_TIMES:
        told = {"answer": cut(record["answer"], _MOST_TEXT), "prompt": cut(record.get("prompt", ""), _MOST_PROMPT)}
        said.append(told | {"consistent": record.get("consistent")})


class Pictures:
    """Reads and reduces pictures for the page until they are too many for it."""

    def __init__(self, budget: int = _PICTURE_BYTES) -> None:
        self._left = budget

    def of(self, record: Record) -> dict[str, Any]:
        """Return what a card shows of the first medium.

        Returns:
            Either "error", why nothing can be shown; or "data", a WebP as data address, "width" and "height" of the
            frame to draw in, and "boxes", (kind, x0, y0, x1, y1) in that frame: the file's for pictures, the montage's
            for volumes. "more" counts the other media.
        """
        if not record["media"]:
            return {"error": "no picture to show"}
        if self._left <= 0:
            return {"error": "left out, for the page would become too large"}
        try:
            picture = _picture(record["media"][0], _boxes(record))
        except (ValueError, OSError) as error:
            return {"error": cut(str(error), _MOST_TEXT)}
        self._left -= len(picture["data"])
        return picture | {"more": len(record["media"]) - 1}


def _boxes(record: Record) -> list[tuple[str, list[float]]]:
    """Return (kind, coords) of all boxes to draw: asked about, true, predicted."""
    boxes = [("asked", box) for box in record["question_boxes"]]
    boxes += [(kind, record[key]) for kind, key in (("true", "reference"), ("predicted", "parsed"))]
    return [(kind, box) for kind, box in boxes if isinstance(box, list)]


def _picture(path: str, boxes: Sequence[tuple[str, list[float]]]) -> dict[str, Any]:
    shown = read_image(path)
    if isinstance(shown, Volume):
        found = [(kind, box) for kind, box in boxes if len(box) == 6]
        laid = montage(shown, [box for _, box in found], width=_MONTAGE_PIXELS)
        pixels = laid.pixels
        drawn = [(kind, *rectangle) for kind, box in found for rectangle in laid.rectangles(box)]
    else:
        pixels = to_display(shown)
        drawn = [(kind, *box) for kind, box in boxes if len(box) == 4]
    picture = PillowImage.fromarray(pixels)
    width, height = picture.size
    picture.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS))
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    return {"data": f"data:image/webp;base64,{data}", "width": width, "height": height, "boxes": drawn}


def card(name: str, entry: Mapping[str, Any], one: Chosen, picture: Mapping[str, Any]) -> Card:
    """Return what the page shows of one answer."""
    record = one.record
    truth, prompt = record["reference"], cut(record["prompt"], _MOST_PROMPT)
    # The majority's guess is no word of the model.
    names = {key: label for key, label in (CONTROLS | PROBES).items() if key in one.under and key != "majority"}
    return {
        "task": name,
        "title": entry["title"],
        "outcome": one.outcome,
        "score": one.score,
        "id": record["id"],
        "patient": record["patient"],
        "modality": record["modality"],
        "answer_type": record["answer_type"],
        "question": cut(record["question"], _MOST_TEXT),
        "answer": cut(record["answer"], _MOST_TEXT),
        "unparsed": record["parsed"] is None,
        "truth": cut(truth, _MOST_TEXT) if isinstance(truth, str) else None,
        "prompt": prompt,
        "picture": picture,
        "under": [{"key": key, "name": label, **said} for key, label in names.items() for said in one.under[key]],
    }


def choices_of(cards: Sequence[Card], key: str) -> list[tuple[str, int]]:
    """Return the values that cards have under a key, with how many have each; [] where all are alike."""
    counts = Counter(one[key] for one in cards)
    return sorted(counts.items()) if len(counts) > 1 else []
