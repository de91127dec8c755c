"""Scores as a table in the terminal, and in a line for each group of tasks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from medmvl.eval.scale import scale_of

CONTROLS = {
    "blank_image": "blank",
    "shuffled_image": "shuffled",
    "question_only": "question",
    "majority": "majority",
}
"""What tables call the controls."""
PROBES = {"mirrored": "mirrored", "paraphrased": "paraphrased", "options_shuffled": "options shuffled"}
"""What tables call the probes."""
_FIXED_ANSWERS = ("classification", "closed", "choice")


def pooled(scores: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return accuracy over all questions with fixed answers (classification, closed, multiple choice), by group.

    Args:
        scores: what scores.json holds. Tasks "brain_atlas/side" and "brain_atlas/size" are of the group "brain_atlas".

    Returns:
        Group -> {"n", "score"} and every control that all of its tasks have, weighted by their number of questions;
        groups without such tasks are left out.
    """
    metric = "accuracy_strict"
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, entry in scores["tasks"].items():
        if entry["family"] in _FIXED_ANSWERS and entry["n"] and metric in entry["metrics"]:
            groups.setdefault(name.rpartition("/")[0], []).append(entry)
    return {group: _pool(entries, metric) for group, entries in groups.items()}


def _pool(entries: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
    total = sum(entry["n"] for entry in entries)
    result = {"n": total, "score": sum(e["n"] * e["metrics"][metric]["value"] for e in entries) / total}
    for control in CONTROLS:
        if all(metric in entry["controls"].get(control, {}) for entry in entries):
            values = [entry["n"] * entry["controls"][control][metric]["value"] for entry in entries]
            result[control] = sum(values) / total
    return result


def headlines(scores: Mapping[str, Any]) -> list[str]:
    """Return a line for each group of tasks: accuracy on questions with fixed answers beside its controls."""
    found = pooled(scores)
    return [
        f"{f'{group}: ' if len(found) > 1 else ''}closed + multiple choice ({overall['n']:,} questions): "
        f"{overall['score']:.1%}   "
        + "   ".join(f"{name} {overall[control]:.1%}" for control, name in CONTROLS.items() if control in overall)
        for group, overall in found.items()
    ]


def print_table(scores: Mapping[str, Any], console: Console | None = None) -> None:
    """Print one row per task: primary metric, 95 % interval, controls; then headlines, probes and what is missing.

    Shares are in percent; a metric marked with an arrow is an error, and lower is better.

    Args:
        scores: what scores.json holds.
        console: where to; by default standard output.
    """
    console = console or Console()
    rows = [_row(entry) for entry in scores["tasks"].values()]
    headings = ("task", "metric", "n", "score", "95 % int.", *CONTROLS.values())
    widths = [max(len(Text.from_markup(row[place])) for row in [headings, *rows]) + 1 for place in range(len(headings))]
    # On a narrow screen names give way, never numbers.
    left = max(console.width - sum(widths[2:]), 24)
    widths[0] = min(widths[0], max(left * 3 // 5, left - widths[1]))
    widths[1] = min(widths[1], left - widths[0])
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for place, (heading, width) in enumerate(zip(headings, widths, strict=True)):
        style = {"style": "dim"} if place == 1 else {"justify": "right"} if place > 1 else {}
        table.add_column(heading, no_wrap=True, width=width - 1, **style)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if lines := headlines(scores):
        console.print("\n" + "\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    for line in (*probe_lines(scores), *missing_lines(scores)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in (*excluded_lines(scores), *_majority_lines(scores)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def excluded_lines(scores: Mapping[str, Any]) -> list[str]:
    """Return a line for each reason why questions have no score, and one for predictions that no sample asked for."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for one in scores["excluded"]:
        title = scores["tasks"][one["task"]]["title"] if one["task"] in scores["tasks"] else one["task"]
        counts[title, one["control"], one["reason"].partition(": ")[2] or one["reason"]] += 1
    told: dict[tuple[str, str], Counter[str]] = {}
    for (title, control, reason), count in counts.items():
        told.setdefault((title, control), Counter())[reason] += count
    lines = []
    for (title, control), reasons in told.items():
        most, _ = reasons.most_common(1)[0]
        under = f" under {control.replace('_', ' ')}" if control else ""
        lines.append(f"not scored{under}, {title}: {reasons.total():,} ({most}{', ...' if len(reasons) > 1 else ''})")
    if unused := scores.get("unused_predictions"):
        lines.append(f"predictions whose ids no sample has: {len(unused):,} ({', '.join(unused[:3])}, ...)")
    return lines


def _majority_lines(scores: Mapping[str, Any]) -> list[str]:
    """Return a line that tells where the majority baseline knows answers of the judged samples themselves."""
    own = [e["title"] for e in scores["tasks"].values() if e.get("majority_from", "train") not in ("", "train")]
    return [f"majority knows the judged answers, for there are no training ones: {', '.join(own)}"] if own else []


def probe_lines(scores: Mapping[str, Any]) -> list[str]:
    """Return a line for each task with probes: how often the answer was what follows from the model's own first one."""
    lines = []
    for entry in scores["tasks"].values():
        told = [
            f"{PROBES.get(name, name)} {probe['consistency']['value']:.1%} ({probe['n']:,})"
            for name, probe in entry["probes"].items()
            if probe["n"]
        ]
        if told:
            lines.append(f"consistent answers, {entry['title']}: {', '.join(told)}")
    return lines


def missing_lines(scores: Mapping[str, Any]) -> list[str]:
    """Return a line for each metric that could not be computed, with the reason and the tasks."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in scores["tasks"].values():
        for metric, reason in entry["unavailable"].items():
            found.setdefault((metric, reason), []).append(entry["title"])
    return [f"no {metric} ({', '.join(titles)}): {reason}" for (metric, reason), titles in found.items()]


def _row(entry: Mapping[str, Any]) -> list[str]:
    metric = entry["primary"]
    score = entry["metrics"].get(metric)
    if score is None:
        return [escape(entry["title"]), escape(metric), f"{entry['n']:,}", "-", "-", *("-" for _ in CONTROLS)]
    controls = [entry["controls"].get(control, {}).get(metric) for control in CONTROLS]
    scale = scale_of(metric, [score, *(control for control in controls if control)])
    return [
        escape(entry["title"]),
        escape(scale.mark.lstrip() + metric),  # a long name is cut off behind
        f"{entry['n']:,}",
        f"[bold]{scale.text(score['value'])}[/bold]",
        f"{scale.text(score['low'])}-{scale.text(score['high'])}",
        *(scale.text(control["value"]) if control else "-" for control in controls),
    ]
