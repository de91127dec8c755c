"""LLaVA-Med: figures of PubMed Central with descriptions (alignment) and conversations (instruct)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field

from medmvl.core.config import Strict
from medmvl.core.schema import Sample, SampleError
from medmvl.data.adapters.annotations import conversation
from medmvl.data.adapters.base import Adapter
from medmvl.data.rows import Row, json_rows


class LlavaMedOptions(Strict):
    """Which of the three files of conversations is meant."""

    instruct: Literal["10k", "60k", "60k_inline_mention"] = Field(
        default="60k",
        description="conversations to take; 60k_inline_mention, written with what the articles say about the figures, "
        "trained the released model",
    )


class LlavaMed(Adapter):
    """Rows of one figure each, with one turn (alignment) or several (instruct).

    Many figures can no longer be downloaded. Samples are made all the same; conversion counts those without a file.
    """

    name = "llava_med"
    title = "LLaVA-Med (alignment 500K, instruct 10K and 60K)"
    version = "1.0"
    licence = "CC BY-NC 4.0, for research; figures have the licences of their articles"
    access = "https://github.com/microsoft/LLaVA-Med; its download_images.py fetches the figures"
    tasks: ClassVar[Mapping[str, str]] = {
        "alignment": "describe the figure",
        "instruct": "conversations about the figure",
    }
    splits: ClassVar[Mapping[str, str]] = {"train": "everything; the data set has no other split"}
    layout = """
alignment/llava_med_alignment_500k.json   [{"id": "32432162_F1", "image": "32432162_F1.jpg", "conversations": [...]}]
instruct/llava_med_instruct_60k.json      and ..._10k.json, ..._60k_inline_mention.json
images/32432162_F1.jpg
"""
    Options = LlavaMedOptions

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        folder = str(self.find("images"))
        files = {
            "alignment": "llava_med_alignment_500k.json",
            "instruct": f"llava_med_instruct_{self.options.instruct}.json",
        }
        finders = {task: partial(self.find, f"{task}/{file}", file) for task, file in files.items() if task in tasks}
        for task, file in self.parts(split, tasks, lambda _: finders, self.options.model_fields_set).items():
            yield from self.each(json_rows(file), lambda row, task=task: (self._sample(row, split, task, folder),))

    def _sample(self, row: Row, split: str, task: str, folder: str) -> Sample:
        name = row.text("id")
        known: dict[str, Any] = {"id": f"{task}/{name}", "study": name.partition("_")[0]}  # the article's number
        domain = row.data.get("domain")
        if isinstance(domain, Mapping):
            known["modality"] = ", ".join(str(kind) for kind, shown in domain.items() if shown)
        if not row.data.get("image"):
            raise ValueError("has no image; every row of this data set has one")
        return conversation(row.data, folder, split=split, task=f"{self.name}/{task}", data_source=self.name, **known)
