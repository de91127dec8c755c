"""Questions as a tower's own text encoder reads them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from medmvl.processing.text import TextEncoder


@dataclass(frozen=True, eq=False)
class QuestionEncoder:
    """Turns the text beside a medium into ids, between the marks that the tokenizer puts around any text.

    Nothing in a question becomes a control token. A longer question loses its end here; the LLM reads all of it.

    Attributes:
        tokenizer: of the tower's text encoder, fast.
        max_tokens: longest question, marks included.

    Raises:
        ValueError: the tokenizer puts no mark around a text, so that an empty question would be nothing at all.
    """

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    _text: TextEncoder = field(init=False, repr=False)
    _marks: tuple[tuple[int, ...], tuple[int, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        marked, bare = (self.tokenizer("a", add_special_tokens=marks).input_ids for marks in (True, False))
        start = next((i for i in range(len(marked)) if marked[i : i + len(bare)] == bare), None)
        if start is None or len(marked) == len(bare):
            raise ValueError(
                "the tokenizer of the question puts no mark, such as [CLS], around a text; name the one that the text "
                "encoder was trained with"
            )
        object.__setattr__(self, "_marks", (tuple(marked[:start]), tuple(marked[start + len(bare) :])))
        object.__setattr__(self, "_text", TextEncoder(self.tokenizer))

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a question, marks included; at least one, even of an empty question.

        Raises:
            ValueError: the tokenizer turns part of the text into a control token.
        """
        before, after = self._marks
        ids = self._text.encode(text, "start")[: self.max_tokens - len(before) - len(after)]
        return (*before, *ids, *after)

    def save(self, folder: Path) -> dict[str, int]:
        """Write the tokenizer's files into a folder; return what else `load` wants to know."""
        self.tokenizer.save_pretrained(folder)
        return {"max_tokens": self.max_tokens}

    @classmethod
    def load(cls, folder: Path, state: Mapping[str, int]) -> Self:
        """Read what `save` wrote."""
        return cls(PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True), **state)
