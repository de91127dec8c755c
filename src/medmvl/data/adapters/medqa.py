"""MedQA: multiple-choice questions of medical board exams in the US, Mainland China and Taiwan; text only."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from itertools import count
from typing import ClassVar, Literal

from pydantic import Field

from medmvl.core.config import Strict
from medmvl.core.schema import Sample, SampleError
from medmvl.data.adapters.base import Adapter
from medmvl.data.questions import draw
from medmvl.data.rows import Row, json_rows


class MedQaOptions(Strict):
    """Which exams."""

    region: Literal["US", "Mainland", "Taiwan"] = Field(
        default="US", description="US (English), Mainland (simplified Chinese) or Taiwan (traditional Chinese)"
    )
    four_options: bool = Field(
        default=False, description="the version with four options instead of five; Taiwan has four anyway"
    )


class MedQa(Adapter):
    """Every question twice: with its options, and alone with the answer in words, as Uni-Med trains on it."""

    name = "medqa"
    title = "MedQA: questions of medical board exams (text)"
    version = "1.0"
    licence = "not stated by its authors; their code is MIT"
    access = (
        "github.com/jind11/MedQA (data_clean.zip); with four options also "
        "huggingface.co/datasets/GBaker/MedQA-USMLE-4-options"
    )
    tasks: ClassVar[Mapping[str, str]] = {
        "choice": "the question with its options; the answer is the right option's text",
        "open": "the question alone; the answer is the right option's text (Uni-Med's medqa_en)",
    }
    splits: ClassVar[Mapping[str, str]] = {"train": "train", "val": "dev", "test": "test"}
    layout = """
data_clean/questions/US/train.jsonl       {"question": ..., "answer": ..., "options": {"A": ...}, "answer_idx": "E"}
data_clean/questions/US/dev.jsonl         Mainland/ and Taiwan/ too; data_clean/ and questions/ may be left out
data_clean/questions/US/test.jsonl
data_clean/questions/US/4_options/phrases_no_exclude_train.jsonl
data_clean/questions/Mainland/4_options/train.jsonl
"""
    Options = MedQaOptions

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        file = self.find(*self._files(self.splits[split]))
        yield from self.each(json_rows(file), partial(self._question, split, tasks, count()))

    def _files(self, split: str) -> list[str]:
        region = self.options.region
        name = f"{region}/{split}.jsonl"
        if self.options.four_options and region != "Taiwan":
            name = f"{region}/4_options/{'phrases_no_exclude_' if region == 'US' else ''}{split}.jsonl"
        alone = [name.rpartition("/")[2]] if "phrases" in name else []
        return [f"{folder}{name}" for folder in ("data_clean/questions/", "questions/", "")] + alone

    def _question(self, split: str, tasks: Collection[str], numbers: Iterator[int], row: Row) -> Iterator[Sample]:
        number, question, options = next(numbers), row.text("question"), _options(row)
        letter, answer = row.text("answer_idx"), row.text("answer")
        if options.get(letter) != answer:
            raise ValueError(f"answer_idx {letter!r} and the answer {answer!r} are not one of the options: {options}")
        region = self.options.region
        meta = {"region": region, "exam": row.optional("meta_info"), "answer_idx": letter}
        key = f"{region}-{split}-{number:05}"
        if "choice" in tasks:
            asked = "\n".join([question, *(f"({name}) {text}" for name, text in options.items())])
            choices = {"answer_type": "choice", "choices": tuple(options.values())}
            yield self.sample(f"choice-{key}", split, "choice", asked, answer, **choices, **meta)
        if "open" in tasks:
            asked = draw("medqa", key, split).replace("{}", question) if region == "US" else question
            yield self.sample(f"open-{key}", split, "open", asked, answer, answer_type="open", **meta)


def _options(row: Row) -> dict[str, str]:
    """Return letter -> text.

    Raises:
        ValueError: no dict of texts, or fewer than two.
    """
    given = row.data.get("options")
    if not isinstance(given, dict) or len(given) < 2 or not all(isinstance(text, str) for text in given.values()):
        raise ValueError(f"field 'options' is {{letter: text}}, got {given!r}")
    return {letter: text.strip() for letter, text in sorted(given.items())}
