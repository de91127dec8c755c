"""An evaluation as one HTML file that needs nothing else: scores beside controls, probes, charts, a gallery."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from medmvl.core.atomic import atomic_file
from medmvl.eval.page.charts import Charts
from medmvl.eval.page.curves import curves
from medmvl.eval.page.gallery import MOST_CARDS, OUTCOMES, Card, Choice, Chosen, Pictures, card, choices_of, mixed, note
from medmvl.eval.page.lines import read_lines
from medmvl.eval.page.overview import (
    Entry,
    exclusions,
    group_panels,
    not_applicable,
    probe_rows,
    sample_rows,
    score_rows,
)
from medmvl.eval.table import CONTROLS, pooled

SCORES, PREDICTIONS, REPORT = "scores.json", "predictions.jsonl", "report.html"
_PAGE = Path(__file__).parent / "page"

Record = Mapping[str, Any]


def write_report(folder: str | Path, logs: Sequence[str | Path] = (), each: int = 6) -> Path:
    """Write report.html beside scores.json and predictions.jsonl.

    The page is self-contained and opens no connection. All text of data, model and user is escaped, and scripts and
    styles other than the page's own are refused by its content security policy. Answers are read one at a time, and
    only those are kept that the page shows.

    Args:
        folder: what `evaluate` wrote to.
        logs: training logs, JSON lines with "loss", "step", "stage" and "kind" ("train" or "validation").
        each: right, partly right and wrong answers shown per task, at most so many of each; fewer where tasks are many.

    Returns:
        The path of the page.

    Raises:
        ValueError: a file is no JSON, or the answers are of other tasks than the scores.
        DiskFullError: it could not be written.
    """
    folder = Path(folder)
    scores = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    tasks = scores["tasks"]
    found = survey(lambda: read_lines(folder / PREDICTIONS), tasks, each)
    cards = _cards(tasks, found)
    style, script = ((_PAGE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    page = Environment(
        loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = page.get_template("report.html.jinja").render(
        provenance=scores["provenance"],
        provenance_text=json.dumps(scores["provenance"], indent=2, ensure_ascii=False),
        controls=CONTROLS,
        pooled=pooled(scores),
        rows=score_rows(tasks),
        probes=probe_rows(tasks),
        groups=group_panels(tasks),
        samples=sample_rows(tasks, scores["excluded"]),
        excluded=exclusions(scores["excluded"]),
        not_applicable=not_applicable(tasks),
        confusions=_drawn(one.charts.confusion() for one in found.values()),
        calibrations=_drawn(one.charts.calibration() for one in found.values()),
        lengths=_drawn(one.charts.lengths() for one in found.values()),
        curves=curves(logs),
        cards=cards,
        outcomes=OUTCOMES,
        notes={name: _note(one, sum(shown["task"] == name for shown in cards)) for name, one in found.items()},
        modalities=choices_of(cards, "modality"),
        answer_types=choices_of(cards, "answer_type"),
        style=style,
        script=script,
        style_hash=_digest(style),
        script_hash=_digest(script),
    )
    with atomic_file(folder / REPORT) as file:
        file.write(text)
    return folder / REPORT


@dataclass(frozen=True)
class Survey:
    """What the answers of one task tell.

    Attributes:
        charts: counts of all of them.
        counts: outcome ("right", "partly", "wrong") -> number of answers to the questions as they are.
        chosen: those of the gallery.
    """

    charts: Charts
    counts: dict[str, int]
    chosen: list[Chosen]


def survey(read: Callable[[], Iterable[Record]], tasks: Mapping[str, Entry], each: int) -> dict[str, Survey]:
    """Read all answers twice, one at a time, and keep counts, and some answers for the gallery.

    Args:
        read: returns the records of predictions.jsonl from the first one on; called twice.
        tasks: name -> entry of scores.json.
        each: answers of each outcome kept per task, at most; fewer where tasks are many.

    Raises:
        ValueError: a record is of a task that has no scores.
    """
    few = max(1, min(each, MOST_CARDS // (len(OUTCOMES) * max(1, len(tasks)))))
    charts = {name: Charts(entry) for name, entry in tasks.items()}
    choices = {name: Choice(name, entry, few) for name, entry in tasks.items()}
    for record in read():
        if record["task"] not in tasks:
            raise ValueError(
                f"{PREDICTIONS} holds answers to {record['task']!r}, which {SCORES} has no scores of; the two are of "
                "different evaluations"
            )
        if record["control"] == "":
            charts[record["task"]].learn(record)
            choices[record["task"]].add(record)
    chosen = {name: choice.chosen(place) for place, (name, choice) in enumerate(choices.items())}
    wanted = {(name, one.record["id"]): one for name, ones in chosen.items() for one in ones}
    for record in read():
        if record["control"] == "":
            charts[record["task"]].count(record)
        elif one := wanted.get((record["task"], record["id"])):
            note(one, record)
    return {name: Survey(charts[name], choices[name].counts, chosen[name]) for name in tasks}


def _cards(tasks: Mapping[str, Entry], found: Mapping[str, Survey]) -> list[Card]:
    """Return the gallery, tasks in turn."""
    pictures = Pictures()
    ordered = mixed([(name, one) for one in found[name].chosen] for name in tasks)[:MOST_CARDS]
    return [card(name, tasks[name], one, pictures.of(one.record)) for name, one in ordered]


def _note(found: Survey, shown: int) -> str:
    """Return how many of a task's answers the gallery shows."""
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in found.counts.items() if count)
    return f"{shown} of {sum(found.counts.values()):,} answers ({told})" if told else "no answers"


def _drawn(found: Iterable[Any]) -> list[Any]:
    return [one for one in found if one is not None]


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
