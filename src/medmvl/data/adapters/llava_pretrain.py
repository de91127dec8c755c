"""LLaVA-Pretrain: 558K pictures of the web with short captions, on which LLaVA aligns its connector."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

from medmvl.core.schema import Sample, SampleError
from medmvl.data.adapters.annotations import conversation
from medmvl.data.adapters.base import Adapter
from medmvl.data.rows import Row, json_rows


class LlavaPretrain(Adapter):
    """Rows of one question and one caption each; `<image>` stands before or after the question."""

    name = "llava_pretrain"
    title = "LLaVA-Pretrain 558K (LAION, CC, SBU with BLIP captions)"
    version = "1.0"
    licence = "that of its sources (LAION, Conceptual Captions, SBU); captions by BLIP"
    access = "https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain; unpack images.zip into images/"
    tasks: ClassVar[Mapping[str, str]] = {"caption": "describe the picture in a sentence"}
    splits: ClassVar[Mapping[str, str]] = {"train": "blip_laion_cc_sbu_558k.json"}
    layout = """
blip_laion_cc_sbu_558k.json   [{"id": "004539375", "image": "00453/004539375.jpg", "conversations": [human, gpt]}, ...]
images/00453/004539375.jpg
"""

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        file, folder = self.find("blip_laion_cc_sbu_558k.json"), str(self.find("images"))

        def make(row: Row) -> tuple[Sample, ...]:
            if not row.data.get("image"):
                raise ValueError("has no image; every row of this data set has one")
            task = f"{self.name}/caption"
            return (conversation(row.data, folder, split=split, task=task, data_source=self.name),)

        yield from self.each(json_rows(file), make)
