"""A published processor at work: conversations to model inputs, nothing in a text ever becoming a control token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medmvl.core.schema import SampleError
from medmvl.eval.engines.engine import EngineError
from medmvl.eval.engines.pictures import Turn

if TYPE_CHECKING:
    import PIL.Image
    from transformers import BatchFeature, ProcessorMixin

_PROBE = "Qwxyz"  # words that no template holds
_MARKED = (
    "<",
    "[",
    "{",
    "|",
)  # what added tokens that control something begin with, even if they are not called special


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conversation as a template wrote it.

    Attributes:
        id: of the sample.
        text: with the processor's placeholders, up to where an answer begins.
        pictures: in the order of the placeholders.
    """

    id: str
    text: str
    pictures: tuple[PIL.Image.Image, ...]


@dataclass(frozen=True)
class Continuation:
    """An answer behind a prompt.

    Attributes:
        text: the prompt's, the answer, and what the template writes behind it.
        behind: tokens at the end that are not the prompt's.
        counted: how many of these, from their start, are the answer and its end mark.
    """

    text: str
    behind: int
    counted: int


class Chat:
    """Writes conversations as a checkpoint's own chat template wants them.

    Texts of samples go through the template and the tokenizer as they are, so a model sees what it was trained on. Only
    where a text spells a control token or a placeholder ("<image>", "<|im_end|>") a space is put behind its first
    character, and a text that becomes a control token even so is refused.

    Args:
        processor: of transformers, with a chat template (its own, or its tokenizer's).
        where: the checkpoint, for messages.

    Raises:
        EngineError: no chat template, or one that does not say where pictures go.
    """

    def __init__(self, processor: ProcessorMixin, where: str) -> None:
        self._processor, self.tokenizer = processor, processor.tokenizer
        processor.chat_template = processor.chat_template or self.tokenizer.chat_template
        if not processor.chat_template:
            raise EngineError(
                f"{where} has no chat template (chat_template.jinja), which says how questions are put to it; copy "
                "that of the published checkpoint, or write one"
            )
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._placeholder = _spelling(getattr(processor, "image_token", None))
        controls = _controls(processor)
        longest_first = sorted((text for text in controls if len(text) > 1), key=len, reverse=True)
        self._spells_control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._control_ids = frozenset(controls.values()) - {None}
        self._in_parts = self._shows_pictures(True)
        if not self._in_parts and not self._shows_pictures(False):
            raise EngineError(
                f"the chat template of {where} does not say where a picture goes; take that of the published checkpoint"
            )
        self.stops = self._stops()
        """Ids that end an answer."""

    def prompt(self, turns: Sequence[Turn], sample_id: str) -> Prompt:
        """Return the prompt that asks for an answer to the last turn.

        Raises:
            SampleError: the template refuses the conversation or leaves pictures out, or a text cannot be told apart
                from control tokens.
        """
        pictures = tuple(picture for turn in turns for picture in turn.pictures)
        text = self._write(turns, sample_id, asking=True)
        shown = text.count(self._placeholder) if self._placeholder else len(pictures)
        if shown != len(pictures):
            raise SampleError(f"its chat template shows {shown} of {len(pictures)} pictures", sample_id)
        return Prompt(sample_id, text, pictures)

    def answered(self, turns: Sequence[Turn], prompt: Prompt, answer: str) -> Continuation:
        """Return what a prompt becomes with an answer behind it.

        Raises:
            SampleError: see `prompt`; or the answer cannot be found in what the template writes.
        """
        said = self._plain(answer.strip(), prompt.id)
        whole = self._write([*turns, Turn("assistant", (answer.strip(),))], prompt.id, asking=False)
        if whole.startswith(prompt.text):
            rest = whole[len(prompt.text) :]
        elif said and said in whole:  # a template that writes former answers otherwise than it asks for new ones
            rest = whole[whole.rindex(said) :]
        else:
            raise SampleError(f"its chat template does not write the answer {answer!r} as it is", prompt.id)
        behind = self._behind(prompt.text, prompt.text + rest)
        if not self.stops & set(behind):
            rest += self.tokenizer.eos_token or ""
            behind = self._behind(prompt.text, prompt.text + rest)
        ends = [place for place, token in enumerate(behind, start=1) if token in self.stops]
        return Continuation(prompt.text + rest, len(behind), ends[0] if ends else len(behind))

    def inputs(self, texts: Sequence[str], pictures: Sequence[Sequence[PIL.Image.Image]], side: str) -> BatchFeature:
        """Return the model's inputs for texts with their pictures, equally many each, padded on one side.

        Raises:
            ValueError: the processor cannot take them.
        """
        begun = self.tokenizer.bos_token is not None and texts[0].startswith(self.tokenizer.bos_token)
        return self._processor(
            text=list(texts),
            images=[list(own) for own in pictures] if any(pictures) else None,
            padding=True,
            padding_side=side,  # said in the call, for some processors have a side of their own
            return_tensors="pt",
            add_special_tokens=not begun,
        )

    def _write(self, turns: Sequence[Turn], sample_id: str, asking: bool) -> str:
        conversation = [
            {
                "role": turn.role,
                "content": [
                    self._plain(piece, sample_id) if isinstance(piece, str) else None for piece in turn.content
                ],
            }
            for turn in turns
        ]
        try:
            return self._render(conversation, asking, self._in_parts)
        except Exception as error:  # a template may stumble in any way over a role or an order it does not know
            raise SampleError(f"its chat template refuses the conversation: {error}", sample_id) from error

    def _render(self, conversation: Sequence[dict[str, Any]], asking: bool, in_parts: bool) -> str:
        """Return what the template writes; contents are lists of texts, and None for a picture."""
        written = []
        for turn in conversation:
            if in_parts:
                content: Any = [
                    {"type": "image"} if piece is None else {"type": "text", "text": piece} for piece in turn["content"]
                ]
            else:
                content = "\n".join(self._placeholder if piece is None else piece for piece in turn["content"])
            written.append({"role": turn["role"], "content": content})
        return self._processor.apply_chat_template(written, tokenize=False, add_generation_prompt=asking)

    def _shows_pictures(self, in_parts: bool) -> bool:
        """Whether the template writes a picture's placeholder when contents come as parts, or as one text."""
        if not in_parts and not self._placeholder:
            return False
        shown, alone = ([None, _PROBE], [_PROBE])
        try:
            found, other = (
                self._render([{"role": "user", "content": content}], True, in_parts) for content in (shown, alone)
            )
        except Exception:  # it takes no such contents
            return False
        counted = not self._placeholder or found.count(self._placeholder) == 1
        return _PROBE in found and found != other and "'type'" not in found and counted

    def _stops(self) -> frozenset[int]:
        """Return the tokenizer's end, and what the template writes behind an answer if that is a control token."""
        asked = {"role": "user", "content": [_PROBE]}
        written = self._render([asked, {"role": "assistant", "content": [_PROBE]}], False, self._in_parts)
        behind = self._ids(written[written.rindex(_PROBE) + len(_PROBE) :].lstrip() if _PROBE in written else "")
        marks = {token for token in behind[:1] if token in self._control_ids}
        return frozenset(marks | {self.tokenizer.eos_token_id} - {None})

    def _plain(self, text: str, sample_id: str) -> str:
        """Return a text with spaces in what would spell a control token."""
        plain = self._spells_control.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        hit = self._control_ids.intersection(self._ids(plain))
        if hit:
            names = ", ".join(map(repr, self.tokenizer.convert_ids_to_tokens(sorted(hit))))
            raise SampleError(f"its tokenizer makes control tokens ({names}) of a text: {text[:80]!r}", sample_id)
        return plain

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _behind(self, prompt: str, whole: str) -> list[int]:
        """Return the ids of a text that are not those of its beginning; placeholders are not filled in."""
        first, ids = self._ids(prompt), self._ids(whole)
        common = next(
            (at for at, (a, b) in enumerate(zip(first, ids, strict=False)) if a != b), min(len(first), len(ids))
        )
        return ids[common:]


def _controls(processor: ProcessorMixin) -> dict[str, int | None]:
    """Return the spellings that control something -> their ids, None for a placeholder that is no token.

    These are the special tokens, other added tokens that look like marks ("<think>", "[INST]"), and the placeholders
    that the processor looks for. Added tokens that are words or white space control nothing, nor does the unknown one.
    """
    tokenizer = processor.tokenizer
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    added = {
        token.content: token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip()
        and (token.special or token.content.startswith(_MARKED))
        and (token_id != tokenizer.unk_token_id or token_id in ends)
    }
    kept = (_spelling(value) for name, value in vars(processor).items() if name.endswith(("_token", "_tag")))
    return {**dict.fromkeys((text for text in kept if text), None), **added}


def _spelling(token: Any) -> str:
    return "" if token is None else str(token)
