"""PubMedQA: research questions answered yes, no or maybe by their abstracts; text only."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from medmvl.core.config import Strict
from medmvl.core.schema import Sample, SampleError
from medmvl.data.adapters.base import Adapter
from medmvl.data.questions import draw
from medmvl.data.rows import BadRow, Row, TableError, json_items

_DECISIONS = ("yes", "no", "maybe")


class PubMedQaOptions(Strict):
    """Which part, and which fold of it."""

    subset: Literal["labeled", "artificial", "unlabeled"] = Field(
        default="labeled",
        description="labeled (PQA-L, with the official test set), artificial (PQA-A) or unlabeled (PQA-U)",
    )
    fold: int | None = Field(
        default=None,
        ge=0,
        le=9,
        description="of PQA-L: its dev set is val, what its test and dev sets leave is train; default: no val",
    )


class PubMedQa(Adapter):
    """Up to three samples of an article, told apart by their tasks.

    The 500 test articles of PQA-L are those of `test_ground_truth.json`; the others are for training, without the dev
    set of a fold where one is chosen. PQA-A has the split that its authors' script makes, where its two files are
    there; else it is for training, like PQA-U, which has no decisions.
    """

    name = "pubmedqa"
    title = "PubMedQA: research questions and abstracts (text)"
    version = "1.0"
    licence = "MIT"
    access = "github.com/pubmedqa/pubmedqa; folds and the split of PQA-A by its preprocess/split_dataset.py"
    tasks: ClassVar[Mapping[str, str]] = {
        "abstract": "the abstract without its conclusion, and the question: yes, no or maybe",
        "question": "the question alone: yes, no or maybe (Uni-Med's pubmedqa)",
        "conclusion": "the abstract without its conclusion, and the question: the conclusion in words",
    }
    splits: ClassVar[Mapping[str, str]] = {"train": "train", "val": "dev set of a fold, or of PQA-A", "test": "test"}
    layout = """
data/ori_pqal.json                  {"21645374": {"QUESTION": ..., "CONTEXTS": [...], "LABELS": [...], ...}, ...}
data/test_ground_truth.json         {"12377809": "yes", ...}
data/pqal_fold0/dev_set.json        for the option fold
data/ori_pqaa.json                  or pqaa_train_set.json and pqaa_dev_set.json
data/ori_pqau.json
(data/ may be left out)
"""
    Options = PubMedQaOptions

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        file = self._file(split)
        if file is not None:
            rows = (row for row in json_items(file) if self._home(row) in (split, None))
            yield from self.each(rows, partial(self._article, split, tasks))

    def _file(self, split: str) -> Path | None:
        """Return the file of a split, None where this subset has no such split."""
        cut = {"train": "pqaa_train_set.json", "val": "pqaa_dev_set.json"}
        is_cut = any((self.root / top / name).is_file() for name in cut.values() for top in ("data", ""))
        names = {
            "labeled": dict.fromkeys(self.splits, "ori_pqal.json"),
            "artificial": cut if is_cut else {"train": "ori_pqaa.json"},
            "unlabeled": {"train": "ori_pqau.json"},
        }[self.options.subset]
        return self._named(names[split]) if split in names else None

    def _named(self, name: str) -> Path:
        return self.find(f"data/{name}", name)

    def _home(self, row: Row | BadRow) -> str | None:
        """Return the split of an article of PQA-L; None: that of the file."""
        if self.options.subset != "labeled":
            return None
        key = "" if isinstance(row, BadRow) else row.data["key"]
        return "test" if key in self._truth else "val" if key in self._dev else "train"

    @cached_property
    def _truth(self) -> dict[str, str]:
        """PMID -> decision of the official test set."""
        rows = list(json_items(self._named("test_ground_truth.json")))
        bad = [row.place for row in rows if isinstance(row, BadRow) or row.data["value"] not in _DECISIONS]
        if bad:
            raise TableError(f"{self.root}: a decision is one of {', '.join(_DECISIONS)}; look at {', '.join(bad[:3])}")
        return {row.data["key"]: row.data["value"] for row in rows if isinstance(row, Row)}

    @cached_property
    def _dev(self) -> set[str]:
        fold = self.options.fold
        rows = [] if fold is None else json_items(self._named(f"pqal_fold{fold}/dev_set.json"))
        return {row.data["key"] for row in rows if isinstance(row, Row)}

    def _article(self, split: str, tasks: Collection[str], item: Row) -> Iterator[Sample]:
        pmid, data = item.data["key"], item.data["value"]
        if not isinstance(data, dict):
            raise ValueError(f"is no object but a {type(data).__name__}")
        row = Row(item.place, data)
        question, abstract = row.text("QUESTION"), _abstract(row)
        if self.options.subset != "unlabeled":
            decision = row.text("final_decision")
            if decision not in _DECISIONS or self._contradicts(pmid, decision):
                raise ValueError(
                    f"final_decision {decision!r} is none of {', '.join(_DECISIONS)}, or not that of the test set"
                )
            choices = {"answer_type": "closed", "choices": _DECISIONS, "study": pmid}
            for task, text in (("abstract", f"{abstract}\n{question}"), ("question", question)):
                if task in tasks:
                    asked = draw("pubmedqa", f"{task}-{pmid}", split).replace("{}", text)
                    yield self.sample(f"{task}-{pmid}", split, task, asked, decision, **choices)
        if "conclusion" in tasks:
            asked, answer = f"{abstract}\n{question}", row.text("LONG_ANSWER")
            yield self.sample(f"conclusion-{pmid}", split, "conclusion", asked, answer, answer_type="open", study=pmid)

    def _contradicts(self, pmid: str, decision: str) -> bool:
        return self.options.subset == "labeled" and self._truth.get(pmid, decision) != decision


def _abstract(row: Row) -> str:
    """Return the sections of an abstract, one a line, each behind its heading where every one has one.

    Raises:
        ValueError: CONTEXTS is no list of texts.
    """
    texts: Any = row.data.get("CONTEXTS")
    headings: Any = row.data.get("LABELS")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"field 'CONTEXTS' is a list of texts, got {type(texts).__name__}")
    if isinstance(headings, list) and len(headings) == len(texts):
        texts = [f"{heading}: {text}" for heading, text in zip(headings, texts, strict=True)]
    return "\n".join(texts)
