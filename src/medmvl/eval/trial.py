"""One task put to one model: its samples and true answers, the questions it asks, and what was said to them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from medmvl.core.log import get_logger
from medmvl.core.schema import BoxRef, Sample, SampleError, Text
from medmvl.data.adapters.table import ADAPTERS, adapter
from medmvl.data.store import MANIFEST, SampleStore, Source, StoreError, find_source, read_each, read_manifest
from medmvl.eval.answers import Parsed, ReadBoxes, option_answers, parse, reference
from medmvl.eval.ask import Request, Said
from medmvl.eval.conditions import Asked, asked
from medmvl.eval.controls import NotAsked, body_frame
from medmvl.eval.metrics.table import Options
from medmvl.eval.metrics.text import normalise
from medmvl.eval.probes import is_consistent
from medmvl.eval.scoring import Record, entry
from medmvl.eval.select import meta_value, selected
from medmvl.eval.shots import box_medium, with_shots, worded
from medmvl.eval.stats import mean_box, most_frequent
from medmvl.eval.task import Task
from medmvl.imaging.picture import ImageError

_LOG = get_logger(__name__)
_ABOUT = ("name", "version", "licence", "description", "credentialed")
_GUESS_FROM = 2000  # training samples looked at, at most, for the majority baseline
_GUESS_BOXES_FROM = 500  # of those with boxes, whose files have to be read
_RANKED = ("", "blank_image", "shuffled_image", "question_only")  # conditions under which options are ranked


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
        source: where its samples lie; None where they came from a file.
        data_hash: of the samples' file.
        about: name, version, licence and description of the data, as far as its manifest tells.
        roots: folders in which the source and its media lie.
        seed: of the samples under a limit, the shuffles and the shots.
        samples: id -> sample with its true answer.
        references: id -> true answer as metrics take it.
        records: condition ("" = the question as it is, or a control's or probe's name) -> one record per answer.
        excluded: samples that could not be asked.
        guessed_from: split whose answers the majority baseline knows; "" before it was asked for.
        not_applicable: control or probe -> why it has nothing to ask -> of how many samples.
    """

    task: Task
    source: Source | None
    data_hash: str
    about: dict[str, Any]
    roots: tuple[str | Path, ...] = ()
    seed: int = 0
    samples: dict[str, Sample] = field(default_factory=dict)
    references: dict[str, Parsed] = field(default_factory=dict)
    records: dict[str, list[Record]] = field(default_factory=dict)
    excluded: list[Excluded] = field(default_factory=list)
    not_applicable: dict[str, Counter[str]] = field(default_factory=dict)
    guessed_from: str = ""
    _common: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        task: Task,
        roots: Sequence[str | Path] = (),
        limit: int | None = None,
        seed: int = 0,
        samples: str | Path | None = None,
    ) -> "Trial":
        """Find a task's samples.

        Args:
            task: what is asked.
            roots: folders in which the source and its media lie.
            limit: keep at most so many samples; a seed keeps the same patients in every task.
            seed: of the choice under `limit`, the shuffles and the shots.
            samples: a file (JSON list or JSONL) whose samples are asked in place of the source's: those of the task's
                source, or all of them if none names it.

        Raises:
            StoreError: no such source, split or sample.
            ValueError: `select` of the task fits no sample.
        """
        trial = cls._of_store(task, roots, seed) if samples is None else cls._of_file(task, roots, seed, Path(samples))
        try:
            kept = list(selected(list(trial.samples.values()), task.select if trial.samples else {}))
        except ValueError as error:
            raise ValueError(f"task {task.name}: {error}") from None
        trial.samples = {}
        for sample in kept if limit is None else _some(kept, limit, seed):
            try:
                if task.answer == "box" and box_medium(sample):
                    told = "its true box lies on another medium than the first, on which boxes of answers are read"
                    raise SampleError(told, sample.id)
                trial.references[sample.id] = reference(task.answer, sample)
                trial.samples[sample.id] = sample
            except SampleError as error:
                trial._exclude_broken(error)
        return trial

    @classmethod
    def _of_store(cls, task: Task, roots: Sequence[str | Path], seed: int) -> "Trial":
        source = find_source(task.source, roots)
        store = SampleStore(source.folder, task.split, source.tasks, roots)
        told = {key: store.manifest[key] for key in _ABOUT if store.manifest.get(key)}
        trial = cls(task, source, store.hash, {"name": source.folder.name, **told}, tuple(roots), seed)
        trial._take(_readable(store, range(len(store)), trial._exclude_broken))
        trial._mind_licence()
        return trial

    @classmethod
    def _of_file(cls, task: Task, roots: Sequence[str | Path], seed: int, file: Path) -> "Trial":
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        trial = cls(task, None, digest, {"name": file.name}, tuple(roots), seed)
        found = []
        for sample in read_each(file, tuple(roots) or file.absolute().parent, task.split):
            if isinstance(sample, SampleError):
                trial._exclude_broken(sample)
            else:
                found.append(sample)
        own = [sample for sample in found if sample.task == task.source]
        trial._take(own if any(sample.task for sample in found) else found)
        if not trial.samples:
            named = sorted({sample.task for sample in found})
            raise StoreError(f"{file}: no sample of the task {task.source!r}; it holds {', '.join(named) or 'none'}")
        trial._mind_licence()
        return trial

    def _mind_licence(self) -> None:
        """Note whether the contents of any sample must not leave this machine, whatever file it came from.

        Its data set says so (MIMIC-CXR), or the manifest of a store that one of its media lies in.
        """
        sources = {part for s in self.samples.values() for part in (s.source, s.task.partition("/")[0])}
        media = {Path(path).parent for sample in self.samples.values() for path in sample.media_key}
        folders = {folder for parent in media for folder in (parent, *parent.parents)}
        if any(adapter(name).credentialed for name in sources & ADAPTERS.keys()) or any(
            read_manifest(folder).get("credentialed") for folder in folders if (folder / MANIFEST).is_file()
        ):
            self.about["credentialed"] = True

    def _take(self, samples: Iterator[Sample] | Sequence[Sample]) -> None:
        for sample in samples:
            if sample.id in self.samples:
                told = "the id occurs twice; only the first sample is asked"
                self._exclude_broken(SampleError(told, sample.id))
            else:
                self.samples[sample.id] = sample

    def _exclude_broken(self, error: SampleError) -> None:
        self.exclude(error.sample_id, "", str(error))

    def exclude(self, sample_id: str, control: str, reason: str) -> None:
        """Note that a sample could not be asked."""
        self.excluded.append(Excluded(sample_id, self.task.name, control, reason))

    def requests(self, condition: str) -> list[Request]:
        """Return the questions under a condition; "" is the question as it is.

        Controls and probes ask again what could be answered before. What they have no form for is counted; a sample
        without another patient to be shuffled with is excluded.
        """
        samples = list(self.samples.values())
        if condition:
            answered = {record["id"] for record in self.records.get("", ())}
            samples = [sample for sample in samples if sample.id in answered]
        truths = [self.references[sample.id] for sample in samples]
        kept: list[tuple[Sample, Asked]] = []
        for sample, found in zip(samples, asked(self.task, condition, samples, truths, self.seed), strict=True):
            if not isinstance(found, NotAsked):
                kept += [(sample, one) for one in found]
            elif condition == "shuffled_image":
                self.exclude(sample.id, condition, found.reason)
            else:
                self.not_applicable.setdefault(condition, Counter())[found.reason] += 1
        prompts = [worded(one.shown.prompt(), one.template or self.task.prompt) for _, one in kept]
        if self.task.shots and prompts:
            originals = [sample for sample, _ in kept]
            examples = self._training_samples()
            prompts = with_shots(prompts, examples, self.task.shots, self.seed, self.task.prompt, originals)
        return [
            Request(self.task, sample, prompt, condition, one.shown, one.expected, self._options(sample, condition))
            for (sample, one), prompt in zip(kept, prompts, strict=True)
        ]

    def _options(self, sample: Sample, condition: str) -> tuple[str, ...]:
        if not self.task.options or condition not in _RANKED:
            return ()
        return tuple(option_answers(self.task.answer, sample, self._closed_set).values())

    def record(self, requests: Sequence[Request], said: Sequence[Said], read_boxes: ReadBoxes) -> None:
        """Parse answers and keep them; what could not be asked is excluded."""
        first = {record["id"]: record["parsed"] for record in self.records.get("", ())}
        for request, one in zip(requests, said, strict=True):
            if one.error is not None:
                self.exclude(request.sample.id, request.condition, one.error)
                continue
            shown, condition = request.shown, request.condition
            # Boxes are read in the frame of the sample's own file: there the true box lies, also under a control.
            framed = shown if condition in self.task.probes else request.sample
            try:
                parsed = parse(self.task.answer, one.text, framed, read_boxes)
            except (SampleError, ImageError) as error:  # a box is told in the frame of a file, which must be there
                self.exclude(request.sample.id, condition, str(error))
                continue
            record = self._record(request.sample, condition, one.text, parsed, request.expected)
            record["prompt"] = _said(request.prompt)
            record["media"] = [] if condition == "blank_image" else list(shown.media_key)
            if one.likelihoods is not None:
                names = option_answers(self.task.answer, request.sample, self._closed_set)
                record["likelihoods"] = dict(zip(names, one.likelihoods, strict=True))
            if condition in self.task.probes:
                own = first[request.sample.id]
                record["consistent"] = is_consistent(condition, self.task.answer, request.sample, shown, own, parsed)
            self.records.setdefault(condition, []).append(record)

    def guess(self) -> None:
        """Answer every asked question with the majority baseline: the most frequent answer, or the mean box.

        The answers are those of the training split where the source has one, else those of the task itself.
        """
        asked = [self.samples[record["id"]] for record in self.records.get("", ())]
        truths = self._training_answers() if asked else []
        self.guessed_from = "train" if truths else self.task.split
        truths = truths or self._answers(asked, [])
        if not truths:
            return
        if self.task.answer == "box":
            mean = mean_box([truth for truth in truths if not isinstance(truth, str)])
        else:
            most = most_frequent([str(truth) for truth in truths])
        for sample in asked:
            try:
                said = body_frame(sample.media[0].path).box(mean) if self.task.answer == "box" else most
            except ImageError as error:
                self.exclude(sample.id, "majority", str(error))
                continue
            text = said if isinstance(said, str) else ""
            record = self._record(sample, "majority", text, said, self.references[sample.id])
            self.records.setdefault("majority", []).append(record)

    def entry(
        self, resamples: int, seed: int, options: Options | None = None, acting: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the task's entry of scores.json; see `scoring.entry`."""
        scored = entry(self.task, self.records, resamples, seed, options, self.not_applicable, acting)
        return scored | {"majority_from": self.guessed_from}

    def _answer(self, sample: Sample) -> Parsed:
        """Return a sample's true answer; a box in shares, so that files of any size and layout can be averaged."""
        truth = reference(self.task.answer, sample)
        return truth if isinstance(truth, str) else body_frame(sample.media[0].path).shares(truth)

    def _training_answers(self) -> list[Parsed]:
        """Return true answers of the training split; [] where there is none, broken samples left out."""
        broken: list[Exception] = []
        most = _GUESS_BOXES_FROM if self.task.answer == "box" else _GUESS_FROM
        answers = self._answers(self._training_samples(most, broken), broken)
        if broken:
            _LOG.warning("%s: %d training samples are broken: %s", self.task.name, len(broken), broken[0])
        return answers

    def _answers(self, samples: Sequence[Sample], broken: list[Exception]) -> list[Parsed]:
        """Return the true answers of samples; of those that cannot be read, what is wrong goes to `broken`."""
        answers: list[Parsed] = []
        for sample in samples:
            try:
                answers.append(self._answer(sample))
            except (SampleError, ImageError) as error:
                broken.append(error)
        return answers

    def _training_samples(self, most: int = _GUESS_FROM, broken: list[Exception] | None = None) -> list[Sample]:
        """Return some `most` samples of the training split, evenly spread; [] where there is none."""
        if self.source is None:
            return []
        try:
            store = SampleStore(self.source.folder, "train", self.source.tasks, self.roots)
        except StoreError as error:
            _LOG.info(
                "%s: there are no training samples, but for those of %s: %s", self.task.name, self.task.split, error
            )
            return []
        found: list[Exception] = [] if broken is None else broken
        rows = range(len(store)) if self.task.select else range(0, len(store), 1 + len(store) // most)
        try:
            kept = list(selected(_readable(store, rows, found.append), self.task.select))
        except ValueError as error:
            _LOG.info("%s: nothing is known from training samples: %s", self.task.name, error)
            return []
        return kept[:: 1 + len(kept) // most]

    @cached_property
    def _closed_set(self) -> list[str]:
        """Return the texts of the answers to be ranked; [] where every sample has choices of its own.

        Of answers that differ in their spelling alone, the most frequent spelling stands for all.
        """
        if isinstance(self.task.options, list):
            return self.task.options
        spelt: dict[str, list[str]] = {}
        for truth in self.references.values() if self.task.options == "answers" else ():
            spelt.setdefault(normalise(str(truth)), []).append(str(truth))
        return [most_frequent(spelt[answer]) for answer in sorted(spelt)]

    def _record(self, sample: Sample, condition: str, text: str, parsed: Parsed | None, expected: Parsed) -> Record:
        return {
            **self._about(sample),
            "control": condition,
            "media": [],
            "answer": text,
            "parsed": parsed,
            "reference": expected,
            "scores": {},
        }

    def _about(self, sample: Sample) -> Record:
        """Return what all records of a sample have in common, made once for all of them."""
        if sample.id not in self._common:
            words, boxes = _question(sample)
            self._common[sample.id] = {
                "id": sample.id,
                "task": self.task.name,
                "control": "",
                "patient": sample.patient,
                "modality": sample.meta.modality,
                "answer_type": sample.meta.answer_type,
                "groups": {key: value for key in self.task.groups if (value := meta_value(sample, key))},
                "question": words,
                "question_boxes": boxes,
            }
        return self._common[sample.id]


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


def _said(prompt: Sample) -> str:
    """Return a whole prompt as people read it, media and boxes in brackets."""
    return "\n".join(
        f"{message.role}: "
        + "".join(part.text if isinstance(part, Text) else f"[{part.type}]" for part in message.content)
        for message in prompt.messages
    )
