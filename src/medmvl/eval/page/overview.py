"""What scores.json says, laid out: scores beside their controls, probes, groups, and how many samples stand behind."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medmvl.eval.page.lines import cut
from medmvl.eval.scale import Scale, scale_of
from medmvl.eval.table import CONTROLS, PROBES

Entry = Mapping[str, Any]
"""One task's entry of scores.json."""
Interval = Mapping[str, float]

_WIDTH, _EDGE = 260.0, 8.0  # of a plot, and what it leaves free at either end
_SCORE_AT, _LANES_AT, _LANE = 12.0, 28.0, 9.0  # heights in a plot: score, first lane of controls, step between lanes
_APART = 10.0  # markers nearer to each other than this lie in two lanes
_MOST_EXCLUDED = 200  # samples listed that could not be asked
_MOST_REASON = 400  # characters of a reason


def score_rows(tasks: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """Return a row for each task: its primary metric beside the controls, and what is told about its other metrics.

    Args:
        tasks: name -> entry of scores.json.
    """
    scales = _scales(tasks)
    rows = []
    for name, entry in tasks.items():
        primary, controls = entry["primary"], entry["controls"]
        lines = [_line(metric, entry, scales[metric]) for metric in entry["metrics"]]
        unavailable = entry["unavailable"]
        rows.append(
            {
                "name": name,
                "group": name.rpartition("/")[0],
                "title": entry["title"],
                "version": entry["version"],
                "metric": primary,
                "n": entry["n"],
                "patients": entry["patients"],
                "score": next((line for line in lines if line["metric"] == primary), None),
                "others": [line for line in lines if line["metric"] != primary],
                "controls": [key for key in CONTROLS if controls.get(key)],
                "unavailable": {metric: reason for metric, reason in unavailable.items() if metric != primary},
                "reason": unavailable.get(primary) or _no_score(entry),
                "options": json.dumps(entry["metric_options"], ensure_ascii=False) if entry["metric_options"] else "",
            }
        )
    return rows


def _no_score(entry: Entry) -> str:
    return "has no value for these answers" if entry["n"] else "no question could be asked"


def _line(metric: str, entry: Entry, scale: Scale) -> dict[str, Any]:
    """Return one metric of one task: texts, the plot, and which control comes as far as the score."""
    score = entry["metrics"][metric]
    controls = {key: entry["controls"][key][metric] for key in CONTROLS if metric in entry["controls"].get(key, {})}
    return {
        "metric": metric,
        "mark": scale.mark,
        "percent": scale.percent,
        **_texts(score, scale),
        "controls": {key: _texts(control, scale) for key, control in controls.items()},
        "reached": _reached(score, controls, scale),
        "plot": _plot(score, controls, scale),
    }


def _texts(interval: Interval, scale: Scale) -> dict[str, str]:
    return {key: scale.text(interval[key]) for key in ("value", "low", "high")}


def _reached(score: Interval, controls: Mapping[str, Interval], scale: Scale) -> str:
    """Return the best control where it lies within the score's interval or beyond it, "" where none does."""
    worst = score["high"] if scale.falls else score["low"]
    near = [key for key, control in controls.items() if not scale.better(worst, control["value"])]
    values = {key: controls[key]["value"] for key in near}
    return (min if scale.falls else max)(near, key=values.__getitem__) if near else ""


def _plot(score: Interval, controls: Mapping[str, Interval], scale: Scale) -> dict[str, Any]:
    """Return where the score and its controls are drawn; controls too near to each other lie in lanes of their own."""
    last: list[float] = []
    markers = []
    for key, control in sorted(controls.items(), key=lambda item: item[1]["value"]):
        drawn = _placed(control, scale)
        lane = next((number for number, x in enumerate(last) if drawn["x"] - x >= _APART), len(last))
        last[lane : lane + 1] = [drawn["x"]]
        markers.append({"key": key, "y": _LANES_AT + _LANE * lane, **drawn})
    lanes = len(last)
    return {
        "width": _WIDTH,
        "height": _LANES_AT + _LANE * (lanes - 1) + 8 if lanes else 2 * _SCORE_AT,
        "score": {"y": _SCORE_AT, **_placed(score, scale)},
        "markers": markers,
        "ticks": [_across(part / 4) for part in range(5)],
        "zero": _across(scale.place(0)) if scale.low < 0 else None,
        "ends": None if scale.percent else scale.ends,
    }


def _placed(interval: Interval, scale: Scale) -> dict[str, float]:
    return {name: _across(scale.place(interval[key])) for name, key in (("x", "value"), ("x0", "low"), ("x1", "high"))}


def _across(share: float) -> float:
    return round(_EDGE + (_WIDTH - 2 * _EDGE) * share, 1)


def _scales(tasks: Mapping[str, Entry]) -> dict[str, Scale]:
    """Return one scale for each metric, so that it looks the same in every task."""
    seen: dict[str, list[Interval]] = {}
    for entry in tasks.values():
        for found in _every(entry):
            for metric, interval in found.items():
                seen.setdefault(metric, []).append(interval)
    return {metric: scale_of(metric, intervals) for metric, intervals in seen.items()}


def _every(entry: Entry) -> Iterable[Mapping[str, Interval]]:
    yield entry["metrics"]
    yield from entry["controls"].values()
    yield from (probe["metrics"] for probe in entry["probes"].values())
    yield from (group["metrics"] for values in entry["groups"].values() for group in values.values())


def probe_rows(tasks: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """Return a row for each probe of each task: how often the changed answer follows from the first one, and scores."""
    scales, share = _scales(tasks), Scale()
    rows = []
    for entry in tasks.values():
        metric = entry["primary"]
        for name, probe in entry["probes"].items():
            score, first = probe["metrics"].get(metric), entry["metrics"].get(metric)
            rows.append(
                {
                    "title": entry["title"],
                    "probe": PROBES.get(name, name),
                    "n": probe["n"],
                    "of": entry["n"],
                    "consistency": _texts(probe["consistency"], share) if probe["consistency"] else None,
                    "plot": _plot(probe["consistency"], {}, share) if probe["consistency"] else None,
                    "metric": f"{metric}{scales[metric].mark}" if score else "",
                    "score": scales[metric].text(score["value"]) if score else None,
                    "first": scales[metric].text(first["value"]) if first else None,
                }
            )
    return rows


def group_panels(tasks: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """Return a panel for each task and key by which it is broken down; keys with one value only say nothing new."""
    scales = _scales(tasks)
    panels = []
    for entry in tasks.values():
        metric = entry["primary"]
        if metric not in entry["metrics"]:
            continue
        scale, whole = scales[metric], entry["metrics"][metric]["value"]
        for key, values in entry["groups"].items():
            if len(values) > 1:
                panels.append(
                    {
                        "title": entry["title"],
                        "key": key.replace("_", " "),
                        "metric": metric,
                        "mark": scale.mark,
                        "ends": scale.ends,
                        "whole": round(100 * scale.place(whole), 1),
                        "whole_text": scale.text(whole),
                        "zero": round(100 * scale.place(0), 1),
                        "bars": [_bar(value, group, metric, scale) for value, group in values.items()],
                    }
                )
    return panels


def _bar(value: str, group: Mapping[str, Any], metric: str, scale: Scale) -> dict[str, Any]:
    bar: dict[str, Any] = {"value": value, "n": group["n"], "text": None}
    if (interval := group["metrics"].get(metric)) is not None:
        low, at, high = (100 * scale.place(interval[end]) for end in ("low", "value", "high"))
        zero = 100 * scale.place(0)
        bar |= {
            "text": scale.text(interval["value"]),
            "interval": f"{scale.text(interval['low'])} – {scale.text(interval['high'])}",
            "from": round(min(zero, at), 1),
            "width": round(abs(at - zero), 1),
            "low": round(low, 1),
            "high": round(high, 1),
        }
    return bar


def sample_rows(tasks: Mapping[str, Entry], excluded: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return how many questions stand behind each task's scores, and what became of the others."""
    lost = Counter((one["task"], one["control"]) for one in excluded)
    return [
        {
            "title": entry["title"],
            "name": name,
            "n": entry["n"],
            "patients": entry["patients"],
            "not_asked": lost[name, ""],
            "under": sum(count for (task, control), count in lost.items() if task == name and control),
            "unparsed": entry["unparsed"],
            "empty": entry["empty"],
        }
        for name, entry in tasks.items()
    ]


def not_applicable(tasks: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """Return a row for each control or probe that has nothing to ask of some samples: why, and of how many."""
    names = CONTROLS | PROBES
    return [
        {"title": entry["title"], "under": names.get(condition, condition), "n": count, "reason": reason}
        for entry in tasks.values()
        for condition, reasons in entry["not_applicable"].items()
        for reason, count in reasons.items()
    ]


def exclusions(excluded: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Return the samples that could not be asked, the first of them to be shown, and the number of all."""
    shown = [one | {"reason": cut(one["reason"], _MOST_REASON)} for one in excluded[:_MOST_EXCLUDED]]
    return {"total": len(excluded), "shown": shown}
