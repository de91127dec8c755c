"""Putting questions to a model: pictures shared, equal questions asked once, broken samples set aside and listed."""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from medmvl.core.log import get_logger
from medmvl.core.schema import BoxRef, Sample, SampleError
from medmvl.eval.task import Generation, Task

_LOG = get_logger(__name__)


class Target(Protocol):
    """What can be evaluated: a bundle, or anything that answers samples as a bundle does."""

    processor: Any
    """Has `boxes_from_text(text, sample) -> list[coords]`; used by tasks whose answer is a box."""

    def generate(self, samples: Sequence[Sample], max_new_tokens: int, temperature: float) -> list[str]:
        """Answer each sample; raise SampleError for one that cannot be used.

        Of a medium marked `blank` the model must see nothing but an even grey.
        """
        ...


@dataclass(frozen=True)
class Request:
    """One question of a task, as it is put to the model.

    `sample` is the original with its true answer, `prompt` what the model gets: no answer, and under a control
    ("blank_image", "shuffled_image"; "" = the real question) blank media, or another patient's.
    """

    task: Task
    sample: Sample
    prompt: Sample
    control: str = ""


def ask(target: Target, requests: Sequence[Request], batch_size: int) -> tuple[dict[int, str], dict[int, str]]:
    """Return answers by index of the request, and for requests that could not be asked what is wrong with them.

    Questions on one file are handed over side by side, so that the model reads it once. Under greedy
    decoding equal prompts (every yes/no question about an even grey) are asked once and share the answer.

    Args:
        target: the model.
        requests: in any order.
        batch_size: samples handed to one call of `generate`.
    """
    groups: dict[Generation, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, request in enumerate(requests):
        settings = request.task.generation
        key = _key(request.prompt) if settings.temperature == 0 else str(index)
        groups[settings][key].append(index)
    answers: dict[int, str] = {}
    excluded: dict[int, str] = {}
    started = time.monotonic()
    with _progress(sum(map(len, groups.values())), requests) as advance:
        for settings, same in groups.items():
            firsts = sorted((indices[0] for indices in same.values()), key=lambda i: (requests[i].prompt.media_key, i))
            followers = {indices[0]: indices for indices in same.values()}
            for start in range(0, len(firsts), batch_size):
                chunk = firsts[start : start + batch_size]
                texts, broken = _generate(target, [requests[i].prompt for i in chunk], settings)
                for place, first in enumerate(chunk):
                    for index in followers[first]:
                        if place in texts:
                            answers[index] = texts[place]
                        else:
                            excluded[index] = broken[place]
                advance(len(chunk))
    _LOG.info(
        "%s: %d questions answered in %.1f s%s",
        _name(requests),
        len(answers),
        time.monotonic() - started,
        f", {len(excluded)} could not be asked" if excluded else "",
    )
    return answers, excluded


def _key(prompt: Sample) -> str:
    """What decides the answer: messages and the boxes they show.

    An even grey is the same whatever file it stands for, unless boxes are told in that file's frame.
    """
    boxes = [
        prompt.meta.boxes[part.box].model_dump(mode="json")
        for message in prompt.messages
        for part in message.content
        if isinstance(part, BoxRef)
    ]
    messages = prompt.to_dict()["messages"]
    if not boxes:
        for part in (part for message in messages for part in message["content"] if part.get("blank")):
            del part["path"]
    return json.dumps([messages, boxes], sort_keys=True)


def _generate(target: Target, prompts: Sequence[Sample], settings: Generation) -> tuple[dict[int, str], dict[int, str]]:
    """Return the texts by place, and what is wrong with those that have none."""
    left = list(range(len(prompts)))
    broken: dict[int, str] = {}
    while left:
        try:
            texts = target.generate([prompts[i] for i in left], **settings.model_dump())
        except SampleError as error:
            same = [i for i in left if prompts[i].id == error.sample_id]
            if not same:
                raise
            # Two sources may use one id: the file at fault tells them apart.
            named = [i for i in same if str(error.path) in prompts[i].media_key] or same
            broken |= dict.fromkeys(named, str(error))
            left = [i for i in left if i not in named]
            continue
        if len(texts) != len(left):
            raise ValueError(f"{type(target).__name__}.generate gave {len(texts)} answers to {len(left)} samples")
        return dict(zip(left, texts, strict=True)), broken
    return {}, broken


def _name(requests: Sequence[Request]) -> str:
    return (requests[0].control or "real media").replace("_", " ") if requests else "nothing"


@contextmanager
def _progress(total: int, requests: Sequence[Request]) -> Iterator[Any]:
    """Yield a function that moves a progress bar on; without a terminal there is none."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:15}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(_name(requests), total=total)
        yield lambda count: progress.advance(bar, count)
