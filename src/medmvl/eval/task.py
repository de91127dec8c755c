"""A task: which samples judge a model, how it is asked, how answers are read and scored. YAML, versioned."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from medmvl.core import shipped
from medmvl.core.config import Strict, load
from medmvl.core.lookup import LookupNameError, choices_text, nearest
from medmvl.eval.answers import Kind
from medmvl.eval.metrics.table import find
from medmvl.eval.suite import Suite, is_suite, load_suite, suite_names

Control = Literal["blank_image", "shuffled_image", "question_only", "majority"]
Probe = Literal["mirrored", "paraphrased", "options_shuffled"]
Family = Literal["classification", "closed", "choice", "open", "report", "rec", "reg"]


class Generation(Strict):
    """How answers are produced; temperature 0 is greedy."""

    max_new_tokens: int = Field(default=16, ge=1)
    temperature: float = Field(default=0.0, ge=0)


class Task(Strict):
    """How a bundle is judged on one kind of question.

    A score is comparable only between equal `version`s: it changes with anything that changes a number.
    """

    name: str
    version: str
    title: str
    """A few words for tables."""
    family: Family
    source: str
    """Data source whose samples are asked: "store/task", or the folder of a sample store."""
    split: str = "test"
    select: dict[str, str | list[str]] = Field(default_factory=dict)
    """Only samples whose `meta` (or `meta.attributes`) has this value, or one of these, under each key."""
    prompt: str = "{question}"
    """What the last question becomes; "{question}" stands for its own words, pictures and boxes keep their places."""
    shots: int = Field(default=0, ge=0)
    """Answered examples of the training split that stand before each question, interleaved with their media."""
    generation: Generation = Generation()
    answer: Kind = "text"
    """How an answer is read before it is scored: "text", the "letter" of an option, or a "box"."""
    options: Literal["", "choices", "answers"] | list[str] = ""
    """A closed set to be ranked by likelihood beside the free answer: the sample's own "choices", all true "answers" of
    the task's samples, or the listed ones. Metrics such as `auc` and `calibration_error` need it."""
    metrics: list[str] = Field(min_length=1)
    primary: str = ""
    """The metric shown first; empty = the first of `metrics`."""
    metric_options: dict[str, dict[str, str | int | float | bool]] = Field(default_factory=dict)
    """Metric -> its options."""
    groups: list[str] = Field(default_factory=list)
    """Keys of `meta` (or `meta.attributes`) by whose values scores are broken down as well, such as "answer_type"."""
    controls: list[Control] = Field(default_factory=lambda: list(get_args(Control)))
    probes: list[Probe] = Field(default_factory=list)
    """Changes of the question after which the right answer is known to stay, or to change in a known way."""
    paraphrases: list[str] = Field(default_factory=list)
    """For the probe "paraphrased": other ways to ask, "{question}" standing for the question's words."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if mistakes := list(self._mistakes()):
            raise ValueError("\n  ".join(mistakes))
        return self

    def _mistakes(self) -> Iterator[str]:
        told = False
        for name in self.metrics:
            try:
                find(name)
            except LookupNameError as error:  # all choices once, they are many
                yield str(error).partition(" Choices: ")[0] if told else str(error)
                told = True
        for field, texts in (("prompt", [self.prompt]), ("paraphrases", self.paraphrases)):
            for text in texts:
                if "{question}" not in text:
                    yield f'{field}: has no place for the question; write "{{question}}" in it, got {text!r}'
        if unknown := sorted(set(self.metric_options) - set(self.metrics)):
            yield f"metric_options: not among the metrics: {', '.join(unknown)}"
        if self.primary and self.primary not in self.metrics:
            yield f"primary is not scored: {self.primary!r}; {choices_text(self.primary, self.metrics)}"

    @property
    def shown(self) -> str:
        """Name of the primary metric."""
        return self.primary or self.metrics[0]


def task_names() -> list[str]:
    """Return the names of the shipped tasks."""
    return shipped.names("eval/tasks", ".yaml")


def group_names() -> list[str]:
    """Return the names of the groups of shipped tasks: "slake" of "slake/vqa"."""
    return sorted({name.rpartition("/")[0] for name in task_names()})


def load_tasks(wanted: str | Path | Task | Sequence[str | Path | Task]) -> list[Task]:
    """Return tasks by shipped name, by group ("brain_atlas" = all of its tasks, by family), by suite, by the file of a
    task or suite, or as they are.

    Raises:
        LookupNameError: neither a shipped task, group or suite nor a file; or a suite names a task that does not ship.
        ConfigError: a task file has mistakes.
        ValueError: two tasks have one name, none is given, or a suite names a metric that its task does not have.
    """
    items = [wanted] if isinstance(wanted, str | Path | Task) else list(wanted)
    tasks = [task for item in items for task in _expand(item)]
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not tasks:
        raise ValueError(f"tasks named twice: {', '.join(twice)}" if twice else "no task given")
    return tasks


def _expand(item: str | Path | Task) -> list[Task]:
    if isinstance(item, Task):
        return [item]
    name = str(item)
    if name.endswith((".yaml", ".yml")):
        return _of_suite(load_suite(item)) if is_suite(Path(item)) else [load(Task, Path(item))]
    if name in suite_names():
        return _of_suite(load_suite(name))
    found = [key for key in task_names() if key == name or key.startswith(name.rstrip("/") + "/")]
    if not found:
        known = {*task_names(), *_tops()}
        raise LookupNameError(f"unknown task {name!r}; {_told(name, known)}. A path to a .yaml file works too.")
    families = get_args(Family)
    return sorted((load(Task, _file(key)) for key in found), key=lambda task: families.index(task.family))


def _of_suite(suite: Suite) -> list[Task]:
    tasks = {name: load(Task, _file(name)) for name in suite.tasks}
    for column in suite.columns:
        metrics = tasks[column.task].metrics
        if column.metric not in metrics:
            told = choices_text(column.metric, metrics, "metrics")
            raise ValueError(f"suite {suite.name}: {column.task} has no metric {column.metric!r}; {told}")
    return list(tasks.values())


def _file(name: str) -> Path:
    path = shipped.path("eval/tasks", name, ".yaml")
    if path is None:
        raise LookupNameError(f"unknown task {name!r}; {_told(name, task_names())}")
    return path


def _told(name: str, known: Iterable[str]) -> str:
    """Return the nearest name, and those that begin alike; all of them would be too many."""
    near, group = nearest(name, known), name.partition("/")[0]
    hint = f"did you mean {near!r}? " if near else ""
    own = [key for key in task_names() if key.startswith(f"{group}/")]
    return hint + (
        choices_text("", own, f"tasks of {group}") if own else choices_text("", _tops(), "groups and suites")
    )


def _tops() -> set[str]:
    return {*group_names(), *suite_names()}
