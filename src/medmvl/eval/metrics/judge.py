"""A language model behind an endpoint as the judge of answers, and how far several judgements agree."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.core import shipped
from medmvl.core.log import get_logger
from medmvl.core.lookup import choices_text
from medmvl.eval.answered import AnswerLog
from medmvl.eval.engines.endpoint import Endpoint, Messages
from medmvl.eval.engines.endpoint import sends_away as leads_away
from medmvl.eval.metrics.agreement import alpha_interval, exact_agreement, kappa_quadratic
from medmvl.eval.metrics.metric import Answers, Family, Floats, Mean, MetricUnavailable, Statistics, mean_of

_LOG = get_logger(__name__)
_RUBRICS = "eval/rubrics"
_BEST = 10
_LINE = re.compile(
    r"^[ \t]*\**(?:final[ ])?score\**[ \t]*[:=][ \t]*\**[ \t]*(10|[0-9])(?:[ \t]*/[ \t]*10)?[ \t]*\**\.?[ \t\r]*$",
    re.IGNORECASE | re.MULTILINE,
)
_ALONE = re.compile(r"\s*\**(10|[0-9])(?:\s*/\s*10)?\**\.?\s*")


def verdict(reply: str) -> int | None:
    """Return the score 0 to 10 of a judge's reply, None where it gives none.

    Read are lines that hold nothing but "Score: 7" ("**Score:** 7/10", "Final score = 7"), or a reply that is nothing
    but the number; what stands before the end of a think block is not. Two lines with different numbers, a number
    beyond 10 and one with decimals give none.
    """
    said = reply.rpartition("</think>")[2]
    if alone := _ALONE.fullmatch(said):
        return int(alone[1])
    found = {int(number) for number in _LINE.findall(said)}
    return found.pop() if len(found) == 1 else None


def sends_away(options: Mapping[str, Any]) -> bool:
    """Return whether a judge of these options is on another machine, which gets to see questions and answers."""
    return options.get("endpoint") is not None and leads_away(str(options["endpoint"]))


def _measure(
    answers: Answers,
    endpoint: str | None = None,
    model: str | None = None,
    rubric: str = "answer",
    repeats: int = 1,
    temperature: float = 0.0,
    max_tokens: int = 512,
    allow_remote: bool = False,
    concurrency: int = 8,
    retries: int = 5,
    timeout: float = 120.0,
    backoff: float = 1.0,
    token_limit: str = "max_tokens",
    keep: str | None = None,
) -> dict[str, Statistics]:
    if endpoint is None or not model:
        raise MetricUnavailable(
            "needs a judge: --metric-option judge_score.endpoint=http://localhost:8000/v1 and --metric-option "
            "judge_score.model=NAME, the same for each metric of the judge"
        )
    if not isinstance(repeats, int) or repeats < 1:
        raise MetricUnavailable(f"option repeats={repeats!r}: give a whole number, at least 1")
    instructions = _rubric(rubric)
    predictions, references = answers.texts()
    questions = answers.questions or [""] * len(references)
    cases = [_case(*texts) for texts in zip(questions, references, predictions, strict=True)]
    empty = np.array([not text.strip() for text in predictions], dtype=bool)
    try:
        judges = [
            Endpoint(endpoint, name.strip(), allow_remote, concurrency, retries, timeout, backoff, token_limit)
            for name in str(model).split(",")
        ]
        asked = [case for case, silent in zip(cases, empty, strict=True) if not silent]
        with _log(keep) as log:
            replies = [
                _replies(judge, instructions, asked, repeat, max_tokens, temperature, log)
                for judge in judges
                for repeat in range(repeats)
            ]
    except ValueError as error:
        raise MetricUnavailable(f"the judge cannot go on: {error}") from error
    ratings = np.full((len(cases), len(replies)), np.nan)
    for rater, said in enumerate(replies):
        found = (verdict(said[case]) for case in asked)
        ratings[~empty, rater] = [np.nan if number is None else number for number in found]
    return _statistics(ratings, empty)


def _statistics(ratings: Floats, empty: np.ndarray) -> dict[str, Statistics]:
    """Return the metrics of ratings [n, raters]; empty answers have none, and score 0."""
    given = ~np.isnan(ratings)
    means = np.where(given, ratings, 0.0).sum(axis=1) / np.maximum(given.sum(axis=1), 1) / _BEST
    return {
        "judge_score": mean_of(means, (given.any(axis=1) | empty).astype(np.float64)),
        "judge_unparsed": Mean(np.where(empty, 0.0, 1.0 - given.mean(axis=1))),
        "judge_agreement_exact": exact_agreement(ratings),
        "judge_kappa_quadratic": kappa_quadratic(ratings),
        "judge_alpha_interval": alpha_interval(ratings),
    }


def _replies(
    judge: Endpoint,
    instructions: str,
    cases: Sequence[str],
    repeat: int,
    max_tokens: int,
    temperature: float,
    log: AnswerLog,
) -> dict[str, str]:
    """Return what a judge says to each different case, asked for where the log does not know it."""
    keys = {
        case: _digest([judge.url, judge.model, instructions, case, repeat, max_tokens, temperature])
        for case in dict.fromkeys(cases)
    }
    missing = [case for case, key in keys.items() if log.get(key) is None]
    requests: list[Callable[[], Messages]] = [partial(_messages, instructions, case) for case in missing]
    refused = 0
    for place, said in judge.each(requests, max_tokens, temperature):
        if isinstance(said, str):
            log.add(keys[missing[place]], text=said)
            continue
        log.add(keys[missing[place]], error=str(said))
        if not refused:
            _LOG.warning("the judge refuses an answer, which counts as unparsed: %s", said)
        refused += 1
    return {case: (log.get(key) or {}).get("text", "") for case, key in keys.items()}


@contextmanager
def _log(folder: str | None) -> Iterator[AnswerLog]:
    """Open what the judge said before, in a folder or nowhere."""
    log = AnswerLog(None if folder is None else Path(folder))
    log.tidy()
    log.refresh()
    try:
        yield log
    finally:
        log.close()


def _messages(instructions: str, case: str) -> Messages:
    return [{"role": "system", "content": instructions}, {"role": "user", "content": case}]


def _case(question: str, reference: str, answer: str) -> str:
    """Return what is judged as JSON, in which no text can end its own place."""
    case = {"question": question, "reference": reference, "answer": answer}
    return json.dumps({key: text for key, text in case.items() if text or key != "question"}, ensure_ascii=False)


def _rubric(name: str) -> str:
    """Return the text of a shipped rubric, or of the user's own file."""
    path = shipped.path(_RUBRICS, name, ".txt")
    if path is None and Path(name).suffix:
        path = Path(name)
    try:
        text = path.read_text(encoding="utf-8").strip() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise MetricUnavailable(f"option rubric: {name} cannot be read: {error}") from error
    if not text:
        hint = choices_text(name, shipped.names(_RUBRICS, ".txt"), "shipped rubrics")
        raise MetricUnavailable(f"option rubric: {name!r} is no rubric; {hint}; or the path of a text file of your own")
    return text


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:40]


JUDGE = Family(
    _measure,
    options={
        "endpoint": "URL of an API that speaks OpenAI's chat protocol, such as http://localhost:8000/v1",
        "model": "its model; several with commas between them judge each answer in turn",
        "rubric": "a shipped rubric or a text file of your own; default: answer",
        "repeats": "judgements of each answer by each model; default: 1",
        "temperature": "of the judge; above 0 repeats differ; default: 0",
        "max_tokens": "longest judgement; default: 512",
        "concurrency": "requests under way at the same time; default: 8",
        "retries": "further tries after a failure that may pass; default: 5",
        "timeout": "seconds for one try; default: 120",
        "backoff": "seconds before the second try, doubled for each further one; default: 1",
        "token_limit": "max_tokens or max_completion_tokens, as the endpoint calls it",
    },
    lower_is_better=frozenset({"judge_unparsed"}),
    sends_away=sends_away,
)
"""Scores from 0 to 1 by one judge or several, how often they gave none, and how far they agree.

An answer's score is the mean of its judgements over 10; an answer without any is left out of the mean, and
`judge_unparsed` says how many judgements had to be. An empty answer scores 0, is not shown to the judge and counts in
no agreement. Agreement is that of repeats and models alike; a judge who judged once has none.
"""
