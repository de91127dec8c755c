"""A suite: one table of a publication, each column a metric of a task. YAML; published numbers ship beside it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from medmvl.core import shipped
from medmvl.core.config import Strict, load, read_yaml
from medmvl.core.lookup import LookupNameError, choices_text


class Column(Strict):
    """One number of every system."""

    heading: str
    group: str = ""
    """Heading above several columns that stand side by side, such as "Report generation"."""
    task: str
    metric: str

    @property
    def label(self) -> str:
        """What names the column where it stands alone."""
        return f"{self.group} {self.heading}".lstrip()


class Suite(Strict):
    """The columns of a table, in their order."""

    name: str
    title: str
    source: str
    """Where such a table was published, and how it is known which metric a column shows."""
    columns: list[Column] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        labels = [column.label for column in self.columns]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"columns: several are called {', '.join(map(repr, twice))}; give them groups")
        return self

    @property
    def tasks(self) -> list[str]:
        """The tasks of its columns, each once."""
        return list(dict.fromkeys(column.task for column in self.columns))


class Reported(Strict):
    """What somebody published about one system. It is shown as reported, never as measured."""

    system: str
    source: str
    """Where the numbers stand."""
    note: str = ""
    """What is not known of how they came about."""
    unconfirmed: Literal["all"] | list[str] = Field(default_factory=list)
    """Columns of which the source does not tell that they are of the suite's metric."""
    values: dict[str, float] = Field(min_length=1)
    """Label of a column -> the number as published."""

    def is_unconfirmed(self, label: str) -> bool:
        """Tell whether it is not known that a number is of its column's metric."""
        return self.unconfirmed == "all" or label in self.unconfirmed


class Baselines(Strict):
    """Everything that is known to be published of the columns of a suite."""

    suite: str
    decimals: int = Field(default=2, ge=0)
    """With which the numbers were published."""
    systems: list[Reported] = Field(min_length=1)


def suite_names() -> list[str]:
    """Return the names of the shipped suites."""
    return shipped.names("eval/suites", ".yaml")


def is_suite(path: Path) -> bool:
    """Tell whether a YAML file holds a suite, and no task."""
    return "columns" in read_yaml(path)[0]


def load_suite(name: str | Path) -> Suite:
    """Return a suite by shipped name or file.

    Raises:
        LookupNameError: neither a shipped suite nor a file.
        ConfigError: the file has mistakes.
    """
    if str(name).endswith((".yaml", ".yml")):
        return load(Suite, Path(name))
    path = shipped.path("eval/suites", str(name), ".yaml")
    if path is None:
        told = choices_text(str(name), suite_names(), "suites")
        raise LookupNameError(f"unknown suite {str(name)!r}; {told}. A path to a .yaml file works too.")
    return load(Suite, path)


def baselines(suite: Suite) -> Baselines | None:
    """Return what was published of a suite's columns, None where nothing ships.

    Raises:
        ConfigError: the file has mistakes.
        ValueError: it names a column that the suite does not have.
    """
    path = shipped.path("eval/baselines", suite.name, ".yaml")
    if path is None:
        return None
    found = load(Baselines, path)
    labels = [column.label for column in suite.columns]
    for reported in found.systems:
        for label in _labels(reported):
            if label not in labels:
                told = choices_text(label, labels, "columns")
                raise ValueError(f"{path}: {reported.system}: the suite has no column {label!r}; {told}")
    return found


def _labels(reported: Reported) -> Iterator[str]:
    yield from reported.values
    if reported.unconfirmed != "all":
        yield from reported.unconfirmed
