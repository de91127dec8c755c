"""One task put to one model: its samples and true answers, the questions it asks, and what the answers score."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmvl.core.log import get_logger
from medmvl.core.schema import BoxRef, Sample, SampleError, Text
from medmvl.data.store import SampleStore, Source, StoreError, find_source
from medmvl.eval.answers import Parsed, ReadBoxes, parse, reference
from medmvl.eval.ask import Request
from medmvl.eval.controls import blank, body_frame, shuffle
from medmvl.eval.metrics.metric import Answers
from medmvl.eval.metrics.table import Options, measure
from medmvl.eval.stats import bootstrap, mean_box, most_frequent
from medmvl.eval.task import Task
from medmvl.imaging.picture import ImageError

_LOG = get_logger(__name__)
_ABOUT = ("name", "version", "licence", "description")
_GUESS_FROM = 2000  # training samples looked at, at most, for the majority baseline
_GUESS_BOXES_FROM = 500  # of those with boxes, whose files have to be read

Record = dict[str, Any]
"""One line of predictions.jsonl."""


@dataclass(frozen=True)
class Excluded:
    """A sample that could not be asked, and why."""

    id: str
    task: str
    control: str
    reason: str


@dataclass
class Trial:
    """A task at work.

    Attributes:
        task: what is asked.
        source: where its samples lie.
        data_hash: of the samples' file.
        about: name, version, licence and description of the data, as far as its manifest tells.
        samples: id -> sample with its true answer.
        references: id -> true answer as metrics take it.
        records: condition ("" = the real media, or a control's name) -> one record per answered question.
        excluded: samples that could not be asked.
        roots: folders in which the source and its media lie.
    """

    task: Task
    source: Source
    data_hash: str
    about: dict[str, Any]
    samples: dict[str, Sample] = field(default_factory=dict)
    references: dict[str, Parsed] = field(default_factory=dict)
    records: dict[str, list[Record]] = field(default_factory=dict)
    excluded: list[Excluded] = field(default_factory=list)
    roots: tuple[str | Path, ...] = ()

    @classmethod
    def load(cls, task: Task, roots: Sequence[str | Path] = (), limit: int | None = None, seed: int = 0) -> "Trial":
        """Find a task's samples.

        Args:
            task: what is asked.
            roots: folders in which the source and its media lie.
            limit: keep at most so many samples; a seed keeps the same patients in every task.
            seed: of the choice under `limit`.

        Raises:
            StoreError: no such source, split or sample.
        """
        source = find_source(task.source, roots)
        store = SampleStore(source.folder, task.split, source.tasks, roots)
        told = {key: store.manifest[key] for key in _ABOUT if store.manifest.get(key)}
        trial = cls(task, source, store.hash, {"name": source.folder.name, **told}, roots=tuple(roots))
        found = list(_readable(store, range(len(store)), trial._exclude_broken))
        for sample in found if limit is None else _some(found, limit, seed):
            try:
                if sample.id in trial.samples:
                    raise SampleError("the id occurs twice; only the first sample is asked", sample.id)
                trial.references[sample.id] = reference(task.answer, sample)
                trial.samples[sample.id] = sample
            except SampleError as error:
                trial._exclude_broken(error)
        return trial

    def _exclude_broken(self, error: SampleError) -> None:
        self.exclude(error.sample_id, "", str(error))

    def exclude(self, sample_id: str, control: str, reason: str) -> None:
        """Note that a sample could not be asked."""
        self.excluded.append(Excluded(sample_id, self.task.name, control, reason))

    def requests(self, control: str, seed: int) -> list[Request]:
        """Return the questions under a condition.

        Args:
            control: "" for the real media; "blank_image" or "shuffled_image" ask again what could be answered with
                them, about an even grey or another patient's.
            seed: of the shuffle.
        """
        samples = list(self.samples.values())
        if not control:
            return [Request(self.task, sample, sample.prompt()) for sample in samples]
        asked = {record["id"] for record in self.records.get("", ())}
        samples = [sample for sample in samples if sample.id in asked]
        changed = shuffle(samples, seed) if control == "shuffled_image" else map(blank, samples)
        requests = []
        for sample, other in zip(samples, changed, strict=True):
            if other is None:
                what = " and ".join(dict.fromkeys(media.type for media in sample.media))
                self.exclude(sample.id, control, f"no other patient has {what} of modality {sample.meta.modality!r}")
            else:
                requests.append(Request(self.task, sample, other.prompt(), control))
        return requests

    def record(self, request: Request, text: str, read_boxes: ReadBoxes) -> None:
        """Parse and score one answer."""
        # Boxes are read in the frame of the sample's own file: there the true box lies, also under a control.
        parsed = parse(self.task.answer, text, request.sample, read_boxes)
        shown = () if request.control == "blank_image" else request.prompt.media_key
        self._note(request.sample, request.control, text, parsed, shown)

    def guess(self) -> None:
        """Answer every asked question with the majority baseline: the most frequent answer, or the mean box.

        The answers are those of the training split where the source has one, else those of the task itself.
        """
        asked = [self.samples[record["id"]] for record in self.records.get("", ())]
        if not asked:
            return
        truths = self._training_answers() or [self._answer(sample) for sample in asked]
        if self.task.answer == "box":
            mean = mean_box([truth for truth in truths if not isinstance(truth, str)])
            for sample in asked:
                self._note(sample, "majority", "", body_frame(sample.media[0].path).box(mean), ())
        else:
            answer = most_frequent([str(truth) for truth in truths])
            for sample in asked:
                self._note(sample, "majority", answer, answer, ())

    def _answer(self, sample: Sample) -> Parsed:
        """Return a sample's true answer; a box in shares, so that files of any size and layout can be averaged."""
        truth = reference(self.task.answer, sample)
        return truth if isinstance(truth, str) else body_frame(sample.media[0].path).shares(truth)

    def _training_answers(self) -> list[Parsed]:
        """Return true answers of the training split; [] where there is none, broken samples left out."""
        broken: list[Exception] = []
        answers: list[Parsed] = []
        try:
            store = SampleStore(self.source.folder, "train", self.source.tasks, self.roots)
        except StoreError as error:
            _LOG.info("%s: the majority baseline knows the %s answers: %s", self.task.name, self.task.split, error)
            return answers
        most = _GUESS_BOXES_FROM if self.task.answer == "box" else _GUESS_FROM
        for sample in _readable(store, range(0, len(store), 1 + len(store) // most), broken.append):
            try:
                answers.append(self._answer(sample))
            except (SampleError, ImageError) as error:
                broken.append(error)
        if broken:
            _LOG.warning("%s: %d training samples are broken: %s", self.task.name, len(broken), broken[0])
        return answers

    def scores(self, resamples: int, seed: int, options: Options | None = None) -> dict[str, Any]:
        """Score the answers, write every sample's own values into its record, and return the entry of scores.json.

        Args:
            resamples: bootstrap draws per interval.
            seed: of the draws.
            options: metric name -> its options.
        """
        real = self.records.get("", [])
        missing: dict[str, str] = {}
        intervals = {}
        for condition in ("", *self.task.controls):
            intervals[condition], lacking = self._intervals(condition, resamples, seed, options)
            missing |= lacking
        return {
            "n": len(real),
            "version": self.task.version,
            "title": self.task.title,
            "family": self.task.family,
            "primary": self.task.shown,
            "patients": len({record["patient"] for record in real}),
            "unparsed": sum(record["parsed"] is None for record in real),
            "metrics": intervals.pop(""),
            "controls": intervals,
            "unavailable": missing,
        }

    def _intervals(
        self, condition: str, resamples: int, seed: int, options: Options | None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        records = self.records.get(condition, [])
        if not records:
            return {}, {}
        answers = Answers(
            [record["parsed"] for record in records],
            [record["reference"] for record in records],
            [record["question"] for record in records],
        )
        found, missing = measure(self.task.metrics, answers, options)
        for name, statistics in found.items():
            if statistics.values is not None:
                for record, value in zip(records, statistics.values.tolist(), strict=True):
                    record["scores"][name] = value
        intervals = bootstrap(found, [record["patient"] for record in records], resamples, seed=seed)
        return {name: one.to_dict() for name, one in intervals.items()}, missing

    def _note(self, sample: Sample, control: str, text: str, parsed: Parsed | None, media: Sequence[str]) -> None:
        truth = self.references[sample.id]
        words, boxes = _question(sample)
        self.records.setdefault(control, []).append(
            {
                "id": sample.id,
                "task": self.task.name,
                "control": control,
                "patient": sample.patient,
                "media": list(media),
                "question": words,
                "question_boxes": boxes,
                "answer": text,
                "parsed": parsed,
                "reference": truth,
                "scores": {},
            }
        )


def _readable(store: SampleStore, rows: Sequence[int], on_error: Callable[[SampleError], None]) -> Iterator[Sample]:
    """Yield the samples of some rows; a broken one goes to `on_error`."""
    for row in rows:
        try:
            yield store[row]
        except SampleError as error:
            on_error(error)


def _some(samples: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    """Return at most `limit` samples, patients in an order that a seed fixes for all tasks, rows in theirs."""

    def draw(index: int) -> tuple[bytes, int]:
        return hashlib.sha256(f"{seed}/{samples[index].patient}".encode()).digest(), index

    return [samples[index] for index in sorted(sorted(range(len(samples)), key=draw)[:limit])]


def _question(sample: Sample) -> tuple[str, list[tuple[float, ...]]]:
    """Return what the last question says, boxes in it as "[box]", and these boxes."""
    boxes: list[tuple[float, ...]] = []
    words = []
    for part in sample.prompt().messages[-1].content:
        if isinstance(part, Text):
            words.append(part.text)
        elif isinstance(part, BoxRef):
            boxes.append(sample.meta.boxes[part.box].coords)
            words.append("[box]")
    return "".join(words).strip(), boxes
