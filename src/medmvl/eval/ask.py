"""Putting questions to an engine: pictures shared, equal questions asked once, answers kept as they come."""

import hashlib
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from medmvl.core.log import get_logger
from medmvl.core.schema import BoxRef, Sample, SampleError, split_fragment
from medmvl.eval.answered import AnswerLog
from medmvl.eval.answers import Parsed
from medmvl.eval.engines.engine import Engine
from medmvl.eval.metrics.metric import MetricUnavailable
from medmvl.eval.task import Generation, Task
from medmvl.eval.team import Team

_LOG = get_logger(__name__)


@dataclass(frozen=True)
class Request:
    """One question of a task, as it is put to the model.

    Attributes:
        task: whose question it is.
        sample: the original, with its true answer.
        prompt: what the model gets: no answer; in the task's words, behind its shots, and changed by the condition.
        condition: "" for the question as it is, or the name of a control or probe.
        shown: the sample as it is asked under the condition, without the task's words and shots.
        expected: the true answer under the condition.
        options: closed set to be ranked by likelihood, as texts of answers; empty where none is asked for.
    """

    task: Task
    sample: Sample
    prompt: Sample
    condition: str
    shown: Sample
    expected: Parsed
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """What came back of one request: an answer, or why there is none."""

    text: str = ""
    error: str | None = None
    likelihoods: tuple[float, ...] | None = None


def ask(
    engine: Engine,
    requests: Sequence[Request],
    log: AnswerLog,
    team: Team | None = None,
    batch_size: int = 4096,
    model: str = "",
) -> list[Said]:
    """Return what the engine says to every request; answers that the log has are not asked for again.

    Questions on one file are handed over side by side, so that the model reads it once. Under greedy decoding equal
    prompts (every yes/no question about an even grey) are asked once and share the answer. The processes of a team
    share the questions; all of them return all answers.

    Args:
        engine: answers.
        requests: in any order, the same in every process.
        log: keeps the answers.
        team: the processes that share the work; None: this one alone.
        batch_size: samples handed to one call of the engine.
        model: under what the log keeps the answers; "" takes the engine's hash.

    Raises:
        EngineError: the engine cannot go on; what it answered is kept.
    """
    team, model = team or Team(), model or engine.hash
    if not requests:
        return []
    started = time.monotonic()
    keys = [_key(model, engine, request.prompt, request.task.generation) for request in requests]
    todo: dict[Generation, dict[str, int]] = defaultdict(dict)
    for index, (request, key) in enumerate(zip(requests, keys, strict=True)):
        if log.get(key) is None:
            todo[request.task.generation].setdefault(key, index)
    left = sum(map(len, todo.values()))
    with _progress(_name(requests), -(-left // team.size)) as advance:
        for settings, missing in todo.items():
            for chunk in _chunks(requests, missing, team, batch_size):
                answered = engine.answer([requests[index].prompt for _, index in chunk], settings)
                _keep(log, [key for key, _ in chunk], answered, "text", advance)
    _gather(log, team)
    ranked = _rank(engine, requests, keys, log, team, batch_size)
    said = [_said(log, key, other) for key, other in zip(keys, ranked, strict=True)]
    _report(requests, said, left, time.monotonic() - started)
    return said


def _rank(
    engine: Engine, requests: Sequence[Request], keys: Sequence[str], log: AnswerLog, team: Team, batch_size: int
) -> list[str]:
    """Have the options of all requests that were answered ranked; return the key of each one's likelihoods, or ""."""
    ranked = [
        _digest([key, list(request.options)]) if request.options and "error" not in (log.get(key) or {}) else ""
        for request, key in zip(requests, keys, strict=True)
    ]
    missing: dict[str, int] = {}
    for index, key in enumerate(ranked):
        if key and log.get(key) is None:
            missing.setdefault(key, index)
    try:
        with _progress("likelihoods", -(-len(missing) // team.size)) as advance:
            for chunk in _chunks(requests, missing, team, batch_size):
                asked = [requests[index] for _, index in chunk]
                answered = engine.likelihoods([one.prompt for one in asked], [one.options for one in asked])
                _keep(log, [key for key, _ in chunk], answered, "likelihoods", advance)
    except MetricUnavailable as error:
        _LOG.info("%s: no likelihoods: %s", engine.name, error)
    _gather(log, team)
    return ranked


def _chunks(
    requests: Sequence[Request], missing: dict[str, int], team: Team, batch_size: int
) -> Iterator[list[tuple[str, int]]]:
    """Yield this process's share of the missing (key, index of a request), ordered by what they show."""
    ordered = sorted(missing.items(), key=lambda item: (requests[item[1]].prompt.media_key, item[1]))
    own = ordered[team.share(len(ordered))]
    for start in range(0, len(own), batch_size):
        yield own[start : start + batch_size]


def _keep(
    log: AnswerLog,
    keys: Sequence[str],
    answered: Iterator[tuple[int, Any]],
    kind: str,
    advance: Callable[[int], None],
) -> None:
    left = set(range(len(keys)))
    for place, said in answered:
        left.remove(place)
        log.add(keys[place], **({"error": str(said)} if isinstance(said, SampleError) else {kind: said}))
        advance(1)
    if left:
        raise ValueError(f"the engine left {len(left)} of {len(keys)} samples without an answer, and said nothing")


def _gather(log: AnswerLog, team: Team) -> None:
    if team.size > 1:
        team.wait()
        log.refresh()
        team.wait()  # nobody goes on, and writes, before all have read the same


def _said(log: AnswerLog, key: str, ranked: str) -> Said:
    entry = log.get(key) or {}
    if "error" in entry:
        return Said(error=entry["error"])
    found = (log.get(ranked) or {}).get("likelihoods") if ranked else None
    return Said(entry["text"], likelihoods=None if found is None else tuple(found))


def _report(requests: Sequence[Request], said: Sequence[Said], asked: int, seconds: float) -> None:
    failed = sum(one.error is not None for one in said)
    _LOG.info(
        "%s: %d questions, %d of them asked now, in %.1f s%s",
        _name(requests),
        len(said),
        asked,
        seconds,
        f"; {failed} have no answer" if failed else "",
    )


def _key(model: str, engine: Engine, prompt: Sample, settings: Generation) -> str:
    """Return what decides the answer: the model, messages, the boxes and files they show, and how it is produced.

    An even grey is the same whatever file it stands for, unless boxes are told in that file's frame. Sampled answers,
    and answers that were written down under ids, depend on the sample's task and id too.
    """
    boxes = [
        prompt.meta.boxes[part.box].model_dump(mode="json")
        for message in prompt.messages
        for part in message.content
        if isinstance(part, BoxRef)
    ]
    messages = prompt.to_dict()["messages"]
    files = []
    for part in (part for message in messages for part in message["content"] if "path" in part):
        if part.get("blank") and not boxes:
            del part["path"]
        else:
            files.append(_version(part["path"]))
    own = [prompt.task, prompt.id] if settings.temperature or not engine.asks else []
    return _digest([model, messages, boxes, files, settings.model_dump(mode="json"), own])


@lru_cache(maxsize=65536)
def _version(path: str) -> tuple[int, int] | None:
    """Return what changes when a file does; None where there is none."""
    try:
        found = os.stat(split_fragment(path)[0])
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def forget_files() -> None:
    """Forget what was known of files, which may have changed since the last evaluation."""
    _version.cache_clear()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:40]


def _name(requests: Sequence[Request]) -> str:
    return (requests[0].condition or "real media").replace("_", " ") if requests else "nothing"


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that moves a progress bar on; without a terminal, or with nothing to do, there is none."""
    if not sys.stderr.isatty() or not total:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:15}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(name, total=total)
        yield lambda count: progress.advance(bar, count)
