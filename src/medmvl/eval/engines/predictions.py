"""Engine `predictions`: answers that some other system wrote into a file."""

import codecs
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmvl.core.boxes import BOX_FORMATS, Coords, box_format_name
from medmvl.core.explain import shorten
from medmvl.core.lookup import nearest
from medmvl.core.schema import Sample, SampleError
from medmvl.eval.engines.engine import Answered, EngineError, Opening
from medmvl.eval.engines.pictures import read_file_boxes
from medmvl.eval.metrics.metric import MetricUnavailable
from medmvl.eval.task import Generation

_TOLD = 20  # mistakes that are told at once
_KEYS = ("id", "prediction", "task", "likelihoods", "boxes")
_WRITTEN = "0-100"  # how our own models write boxes unless told otherwise

_Key = tuple[str | None, str]
"""(task, or None for any; id)."""


@dataclass(frozen=True)
class Unmatched:
    """What of samples and predictions stays alone.

    Attributes:
        missing: samples without a prediction, "id" or "task: id".
        extra: predictions without a sample, likewise.
    """

    missing: tuple[str, ...]
    extra: tuple[str, ...]


class PredictionsEngine:
    """Answers out of a file.

    A line of the sample's own task counts before one that names no task.

    Args:
        path: JSON lines {"id", "prediction"}, UTF-8; beside these "task" (for ids that several tasks use) and
            "likelihoods" ({option: log-likelihood}), and "boxes", those of the answer in the file's own frame, as
            `medmvl predict` writes them, which then count in place of the text's; other keys are not looked at.
        boxes: how boxes are written in the answers, a name of `BOX_FORMATS`; numbers run along the axes of the
            sample's first file.

    Raises:
        EngineError: the file cannot be read, or lines of it are wrong; names up to 20 of them.
    """

    remote = False
    asks = False

    def __init__(self, path: str | Path, boxes: str = _WRITTEN) -> None:
        self._boxes, self.boxes_read_as = BOX_FORMATS[box_format_name(boxes)], boxes
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise EngineError(f"{path}: cannot be read: {error.strerror or error}") from error
        self._lines = _read(Path(path), content)
        self.name = f"predictions:{path}"
        self.hash = hashlib.sha256(content).hexdigest()
        self.identity = self.hash

    def answer(self, prompts: Sequence[Sample], settings: Generation) -> Answered:
        """Yield what the file says to each sample; how answers were produced is not up to us."""
        for place, prompt in enumerate(prompts):
            found = self._find(prompt)
            yield place, SampleError("no prediction", prompt.id) if found is None else found["prediction"]

    def likelihoods(
        self, prompts: Sequence[Sample], options: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float] | SampleError]]:
        """Yield the likelihoods that the file gives for each option.

        Raises:
            MetricUnavailable: no line of the file has any.
        """
        if not any("likelihoods" in line for line in self._lines.values()):
            raise MetricUnavailable(f'{self.name}: no line has "likelihoods": {{option: log-likelihood}}')
        return self._likelihoods(prompts, options)

    def _likelihoods(
        self, prompts: Sequence[Sample], options: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float] | SampleError]]:
        for place, (prompt, own) in enumerate(zip(prompts, options, strict=True)):
            found = (self._find(prompt) or {}).get("likelihoods", {})
            left = [option for option in own if option not in found]
            if left:
                yield place, SampleError(f"no likelihood of {', '.join(map(repr, left))}", prompt.id)
            else:
                yield place, [float(found[option]) for option in own]

    def boxes(self, text: str, sample: Sample) -> Sequence[Coords]:
        """See `Engine.boxes`."""
        if (found := (self._find(sample) or {}).get("boxes")) is not None:
            return [tuple(map(float, box)) for box in found]
        return read_file_boxes(text, sample, self._boxes)

    def unmatched(self, samples: Iterable[Sample]) -> Unmatched:
        """Return which of all samples of an evaluation have no prediction, and which predictions no sample."""
        missing, used = [], set()
        for sample in samples:
            key = self._key(sample)
            if key is None:
                missing.append(_shown((sample.task or None, sample.id)))
            else:
                used.add(key)
        return Unmatched(tuple(missing), tuple(_shown(key) for key in self._lines if key not in used))

    def _find(self, sample: Sample) -> Mapping[str, Any] | None:
        key = self._key(sample)
        return None if key is None else self._lines[key]

    def _key(self, sample: Sample) -> _Key | None:
        return next((key for key in ((sample.task, sample.id), (None, sample.id)) if key in self._lines), None)


def open_predictions(address: str, opening: Opening, boxes: str = _WRITTEN) -> PredictionsEngine:
    """Open a file of answers.

    Raises:
        EngineError: see `PredictionsEngine`.
    """
    return PredictionsEngine(address, boxes)


def _shown(key: _Key) -> str:
    task, name = key
    return name if task is None else f"{task}: {name}"


def _read(path: Path, content: bytes) -> dict[_Key, dict[str, Any]]:
    """Return the file's lines by task and id."""
    found: dict[_Key, dict[str, Any]] = {}
    first: dict[_Key, int] = {}
    wrong: list[str] = []
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise EngineError(f"{path}: is UTF-16; convert it to UTF-8")
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _row(line)
            key = (row.get("task"), row["id"])
            if key in first:
                raise ValueError(f"id {row['id']!r} is that of line {first[key]} as well; keep one")
        except ValueError as error:
            wrong.append(f"{path}:{number}: {error}")
            continue
        found[key], first[key] = row, number
    if wrong:
        more = f"\nand {len(wrong) - _TOLD} more" if len(wrong) > _TOLD else ""
        listed = "\n".join(wrong[:_TOLD])
        raise EngineError(f"{len(wrong)} lines are no predictions:\n{listed}{more}")
    if not found:
        raise EngineError(f'{path}: holds no predictions; write one JSON object {{"id", "prediction"}} per line')
    return found


def _row(line: bytes) -> dict[str, Any]:
    """Return one line, checked."""
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start + 1}); convert the file") from None
    except RecursionError:
        raise ValueError("is no JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error.msg} at character {error.colno}): {shorten(line.decode())}") from None
    if not isinstance(row, dict):
        raise ValueError(f'is {type(row).__name__}, not an object {{"id", "prediction"}}; write one object per line')
    for key in ("id", "prediction"):
        if key not in row:
            near = nearest(key, [name for name in row if name not in _KEYS])
            raise ValueError(f"has no {key!r}{f'; is {near!r} meant?' if near else f'; its keys are {list(row)}'}")
    if isinstance(row["id"], int) and not isinstance(row["id"], bool):
        row["id"] = str(row["id"])
    for key in ("id", "prediction", "task"):
        _check_text(key, row.get(key, ""))
    _check_likelihoods(row.get("likelihoods", {}))
    _check_boxes(row.get("boxes", []))
    return {key: row[key] for key in _KEYS if key in row}


def _check_text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        empty = '; an empty answer is ""' if key == "prediction" else ""
        raise ValueError(f"{key!r} is a text, got {shorten(value)}{empty}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key!r} holds half of a character ({value[error.start]!a})") from None


def _check_likelihoods(value: Any) -> None:
    numbers = list(value.values()) if isinstance(value, dict) else [None]
    if any(isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n) for n in numbers):
        raise ValueError(f"'likelihoods' is {{option: log-likelihood}} in finite numbers, got {shorten(value)}")


def _check_boxes(value: Any) -> None:
    boxes = value if isinstance(value, list) else [None]
    numbers = [number for box in boxes for number in (box if isinstance(box, list) and len(box) in (4, 6) else [None])]
    if any(isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n) for n in numbers):
        raise ValueError(f"'boxes' is a list of boxes of 4 or 6 finite numbers, got {shorten(value)}")


def _no_number(name: str) -> float:
    raise ValueError(f"is no JSON: {name} is no number there")
