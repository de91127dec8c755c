"""Chat templates: which text, control tokens and media a conversation becomes, and which part of it is the answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Generic, Self, TypeVar

import jinja2
from transformers import PreTrainedTokenizerBase

from medmvl.core import shipped
from medmvl.core.log import get_logger
from medmvl.core.lookup import choices_text
from medmvl.processing.text import control_tokens

_FOLDER = "processing/templates"
FALLBACK = "vicuna"
"""The template of a model whose tokenizer brings none and whose settings name none: the paper's prompt."""

_OPEN_ENDED = re.compile(r"\{#-?\s*end mark: none\s*-?#\}")
_FIRST_SLOT, _LAST_SLOT = 0x100000, 0x10FFFD
_SLOT = re.compile(f"[{chr(_FIRST_SLOT)}-{chr(_LAST_SLOT)}]")
_MAX_MESSAGES = (_LAST_SLOT - _FIRST_SLOT) // 2
# Some templates print today's date (this is Llama 3's own default): a prompt must not change over night. A macro stands
# in for transformers' clock, for it takes no function from a caller; the line break is eaten, as behind every block.
_DATE = datetime(2024, 7, 26)
_FIXED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{code}', '{_DATE:%{code}}')" for code in "aAbBdHIjmMpSyY")
    + " }}{% endmacro %}\n"
)


class TemplateError(ValueError):
    """A template that cannot render a conversation."""


@dataclass(frozen=True, slots=True)
class Medium:
    """The place of one image or volume in a prompt; `index` counts the sample's media in reading order."""

    index: int


Content = tuple[str | Medium, ...]
"""What a message says, boxes already written as text."""
Piece = str | int | Medium
"""A run of text to encode in one go, a control token's id, or a medium."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """The place where a template writes what message number `message` says, or its media alone."""

    message: int
    media_only: bool


_Atom = str | int | _Slot
_Part = TypeVar("_Part", Piece, _Atom)


@dataclass(frozen=True, slots=True)
class Turn(Generic[_Part]):
    """What the model reads and then says; the prompts and targets of a branch, laid end to end, are the branch.

    `supervised` tells whether this branch is the one that teaches the answer.
    """

    prompt: tuple[_Part, ...]
    target: tuple[_Part, ...]
    supervised: bool


_Outline = tuple[Turn[_Atom], ...]


class Template:
    """A jinja chat template bound to a tokenizer.

    The template never sees what is said. It is rendered with one private character per message, in transformers'
    sandbox, and cut at these characters and at the control tokens of its own text. So nothing said can change the
    template's course or be taken for its control tokens, and each order of roles is rendered once.

    An answer begins where the generation prompt ends, and ends with the first control token behind it; if the template
    never closes a turn, the tokenizer's end token does. Only a template that says `{# end mark: none #}` has no end.

    Besides transformers' variables a template may use `message['media']` (the media of a message, without its text)
    and `start_mark` (the bos token if the tokenizer begins its own texts with it, else "").

    Args:
        name: how messages call it.
        source: the jinja text.
        tokenizer: whose control tokens it uses. Its own `chat_template` is not looked at.

    Raises:
        TemplateError: jinja cannot read it, or nothing would end an answer.
    """

    def __init__(self, name: str, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
        if _SLOT.search(source):
            raise TemplateError(f"template {name!r} uses private characters above U+100000, which stand for content")
        self.name, self.source, self._tokenizer = name, source, tokenizer
        self._spelling = control_tokens(tokenizer)
        bos = tokenizer.bos_token
        starts = bos is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        self._start_mark = bos if starts else ""
        self._outlines: dict[tuple[str, ...], tuple[_Outline, ...]] = {}
        last = self._outline(("user", "assistant"))[-1][-1].target[-1]
        self.end_mark: int | None = last if isinstance(last, int) else None
        """Id of the token that ends an answer."""

    @classmethod
    def load(cls, name: str | Path | None, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Load a shipped template by name, a .jinja file, or (None) the tokenizer's own.

        A tokenizer without one (a base LLM's) gets the paper's prompt, `vicuna`, with a warning.

        Raises:
            ValueError: the name is unknown, or the template does not fit the tokenizer.
        """
        known = shipped.names(_FOLDER, ".jinja")
        if name is None and tokenizer.chat_template is not None:
            return cls("tokenizer", tokenizer.get_chat_template(), tokenizer)
        if name is None:
            get_logger(__name__).warning(
                "tokenizer %r has no chat template of its own: the model gets %r; name another one as its `template`: "
                "%s, or a .jinja file",
                tokenizer.name_or_path,
                FALLBACK,
                ", ".join(known),
            )
            name = FALLBACK
        path = shipped.path(_FOLDER, str(name), ".jinja") or Path(name)
        if path.suffix != ".jinja":
            raise ValueError(f"unknown template {str(name)!r}; {choices_text(str(name), known)}, or a .jinja file")
        try:
            source = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"cannot read template {path}: {error.strerror}") from None
        return cls(path.stem, source, tokenizer)

    def branches(self, roles: Sequence[str], contents: Sequence[Content]) -> list[list[Turn[Piece]]]:
        """Return a conversation's branches, each a list of turns; the last message is an assistant's.

        One branch holds all turns if every prompt continues what came before, token for token. A template that writes
        a past answer in another way than a fresh one (Qwen3 leaves out the think block) makes a branch per answer.

        Args:
            roles: "system", "user" or "assistant" per message, as in a Sample.
            contents: what each message says. What the last one says may be empty, to get its prompt.

        Raises:
            TemplateError: the template refuses these roles, or leaves a message out.
        """
        return [
            [Turn(_filled(t.prompt, contents), _filled(t.target, contents), t.supervised) for t in outline]
            for outline in self._outline(tuple(roles))
        ]

    def _outline(self, roles: tuple[str, ...]) -> tuple[_Outline, ...]:
        if roles not in self._outlines:
            self._outlines[roles] = self._compile(roles)
        return self._outlines[roles]

    def _compile(self, roles: tuple[str, ...]) -> tuple[_Outline, ...]:
        """Return the branches of a conversation with these roles, contents left open."""
        if roles[-1:] != ("assistant",):
            raise ValueError(f"a conversation to learn from ends with the assistant, got roles {', '.join(roles)}")
        if len(roles) > _MAX_MESSAGES:
            raise TemplateError(f"{len(roles)} messages; a conversation has at most {_MAX_MESSAGES}")
        answers = [self._answer(roles[: i + 1]) for i, role in enumerate(roles) if role == "assistant"]
        stable = all(answers[-1][0].startswith(past) for past, _ in answers)
        ends = [len(answers)] if stable else range(1, len(answers) + 1)
        return tuple(self._branch(answers[:end], stable) for end in ends)

    def _branch(self, answers: list[tuple[str, int]], stable: bool) -> _Outline:
        """Return the turns that lead to the last of `answers`; if not `stable`, only that one is to be learned."""
        whole = answers[-1][0]
        spans = [(start, len(past)) for past, start in answers if whole.startswith(past)]
        turns, cursor = [], 0
        for start, end in spans:
            supervised = stable or end == len(whole)
            turns.append(Turn(self._atoms(whole[cursor:start]), self._atoms(whole[start:end]), supervised))
            cursor = end
        return tuple(turns)

    def _answer(self, roles: tuple[str, ...]) -> tuple[str, int]:
        """Return the text of a conversation up to the end mark of its last answer, and where that answer begins."""
        last = len(roles) - 1
        full = self._render(roles, add_generation_prompt=False)
        place = full.find(_slot(last))
        if place < 0:
            raise TemplateError(f"template {self.name!r} leaves out what the assistant says (message {last})")
        # transformers renders no empty conversation: an assistant that speaks first is asked by what precedes it.
        asked = self._render(roles[:-1], add_generation_prompt=True) if last else full[:place]
        lead = full[len(asked) : place] if full.startswith(asked) else ""
        if lead.strip():
            # The template knows no generation prompt: the assistant's header is no answer.
            asked, lead = full[:place], ""
        rest = full[place + 1 :]
        closed = next((end for _, end, _ in self._controls(rest)), None)
        if closed is not None:
            said = rest[:closed]
        elif _OPEN_ENDED.search(self.source):
            said = ""
        elif self._tokenizer.eos_token is not None:
            said = self._tokenizer.eos_token
        else:
            raise TemplateError(
                f"template {self.name!r} ends an answer with no control token, and the tokenizer has no eos_token; "
                "set one, or state in the template that there is no end: {# end mark: none #}"
            )
        whole = asked + lead + full[place] + said
        self._check_complete(whole, roles)
        return whole, len(asked)

    def _check_complete(self, text: str, roles: tuple[str, ...]) -> None:
        shown = _SLOT.findall(text)
        for index, role in enumerate(roles):
            times = shown.count(_slot(index)) + shown.count(_slot(index, media_only=True))
            if times != 1:
                fault = "leaves out" if times == 0 else "repeats"
                raise TemplateError(f"template {self.name!r} {fault} message {index} ({role}); choose another template")

    def _render(self, roles: tuple[str, ...], add_generation_prompt: bool) -> str:
        messages = [
            {"role": role, "content": _slot(index), "media": _slot(index, media_only=True)}
            for index, role in enumerate(roles)
        ]
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                chat_template=_FIXED_CLOCK + self.source,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=False,
                date_string=f"{_DATE:%d %b %Y}",
                start_mark=self._start_mark,
            )
        except (jinja2.TemplateError, TypeError) as error:
            order = ", ".join(roles)
            raise TemplateError(f"template {self.name!r} refuses messages in the order {order}: {error}") from None

    def _controls(self, text: str) -> list[tuple[int, int, int]]:
        """Return (start, end, id) of the control tokens in a template's own text, found by the tokenizer itself."""
        encoding = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        found = zip(encoding.offsets, encoding.ids, strict=True)
        # Spelled out, for characters outside the vocabulary become the unknown token, which is a control token too.
        return [
            (a, b, i) for (a, b), i in found if i in self._spelling and text[a:b].strip() == self._spelling[i].strip()
        ]

    def _atoms(self, text: str) -> tuple[_Atom, ...]:
        """Cut a rendered text at its control tokens and slots."""
        marks: list[tuple[int, int, int | _Slot]] = [*self._controls(text)]
        for match in _SLOT.finditer(text):
            message, media_only = divmod(ord(match[0]) - _FIRST_SLOT, 2)
            marks.append((*match.span(), _Slot(message, bool(media_only))))
        atoms: list[_Atom] = []
        cursor = 0
        for start, end, mark in sorted(marks, key=lambda mark: mark[0]):
            atoms += [text[cursor:start], mark] if start > cursor else [mark]
            cursor = end
        return (*atoms, text[cursor:]) if cursor < len(text) else tuple(atoms)


def _slot(message: int, media_only: bool = False) -> str:
    return chr(_FIRST_SLOT + 2 * message + media_only)


def _filled(atoms: tuple[_Atom, ...], contents: Sequence[Content]) -> tuple[Piece, ...]:
    """Put the contents into their slots and join neighbouring text to runs."""
    pieces: list[Piece] = []
    for atom in atoms:
        if isinstance(atom, _Slot):
            said = contents[atom.message]
            new = [part for part in said if isinstance(part, Medium)] if atom.media_only else said
        else:
            new = (atom,)
        for piece in new:
            if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
                pieces[-1] += piece
            elif piece != "":
                pieces.append(piece)
    return tuple(pieces)
