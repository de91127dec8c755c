"""Samples to token ids, labels and lazily read media, and answers back to text and boxes."""

import hashlib
import json
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from medmvl.core.boxes import BoxFormat, Coords
from medmvl.core.schema import BoxRef, Message, Sample, SampleError, Text
from medmvl.imaging.augment import Augmentation
from medmvl.imaging.cache import PreparedStore
from medmvl.imaging.features import Kept
from medmvl.imaging.geometry import beyond, invert, transform_box
from medmvl.imaging.spec import VisionSpec
from medmvl.processing.encoded import IGNORE, Branch, Encoded, Media, Seed
from medmvl.processing.question import QuestionEncoder
from medmvl.processing.template import Content, Medium, Piece, Template, Turn
from medmvl.processing.text import Place, TextEncoder, control_tokens

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True)
class TowerInput:
    """What the processor must know of a tower: its placeholder, and how many tokens one picture becomes."""

    placeholder: str
    kind: Literal["image", "volume"]
    num_tokens: int
    spec: VisionSpec
    questions: QuestionEncoder | None = None
    """For a tower that reads the question."""


class _OutOfSightError(SampleError):
    """A box lies outside of what the encoder sees."""


@dataclass
class _Draft:
    """A conversation on its way to tokens."""

    roles: list[str] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)


class Processor:
    """Turns samples into ids and labels, in one breath, and model output into text and boxes.

    Args:
        tokenizer: a fast tokenizer; placeholders it does not have are added to it as special tokens. Their ids may lie
            beyond the model's embedding rows: the model never embeds them.
        template: a `Template`, or what `Template.load` takes; None is the tokenizer's own.
        towers: tower name -> its input; at most one per kind.
        max_tokens: longest branch allowed, media included.
        box_format: how boxes are written.
        shorten: what to do with a longer one: None refuses it, "text" cuts the end of the longest text in its last
            answer and last question; image tokens and the end mark always stay.
        store: where fitted volumes are kept between uses; it changes no value, and is not saved with the processor.

    Raises:
        ValueError: two towers share a kind or a placeholder, or the template does not fit the tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template | str | Path | None = None,
        towers: Mapping[str, TowerInput] | None = None,
        max_tokens: int = 2048,
        box_format: BoxFormat | None = None,
        shorten: Literal["text"] | None = None,
        store: PreparedStore | None = None,
    ) -> None:
        if shorten not in (None, "text"):
            raise ValueError(f"shorten is 'text' or None, got {shorten!r}")
        self.tokenizer = tokenizer
        self.towers = dict(towers or {})
        self.max_tokens, self.shorten = max_tokens, shorten
        self.box_format = box_format or BoxFormat()
        self.store = store
        self.kept: Mapping[str, Kept] = {}
        """Tower -> the features that stand in for its media."""
        self._tower_of = {tower.kind: name for name, tower in self.towers.items()}
        if len(self._tower_of) < len(self.towers):
            raise ValueError(
                f"towers {', '.join(self.towers)}: two of them take the same kind of media; keep one per kind"
            )
        self.placeholder_ids = _register(tokenizer, {name: tower.placeholder for name, tower in self.towers.items()})
        """Tower name -> id of its placeholder token."""
        self.template = template if isinstance(template, Template) else Template.load(template, tokenizer)
        self._text = TextEncoder(tokenizer)
        ends = {self.template.end_mark, tokenizer.eos_token_id} - {None}
        self.stop_ids: tuple[int, ...] = tuple(sorted(ends))
        """Ids that end an answer: the template's end mark and the tokenizer's end token."""

    def with_kept(self, kept: Mapping[str, Kept]) -> Self:
        """Return this processor, but with features in place of the media of some towers; not saved with it."""
        other = copy(self)
        other.kept = dict(kept)
        return other

    def encode(
        self,
        sample: Sample,
        augmentation: Augmentation | None = None,
        seed: Seed = (),
        pool: dict[str, Media] | None = None,
    ) -> Encoded:
        """Turn a sample that ends with an answer into ids and labels. Opens a file only to place a box.

        Args:
            sample: the sample.
            augmentation: how to vary its media; None leaves them as they are, and so does a variation that would move
                a box of the sample out of sight.
            seed: (seed, epoch, media group, ...): equal seeds vary equal media equally.
            pool: media at hand by key; what is missing is added. Samples that share it read each file once.

        Raises:
            SampleError: it does not fit the template, the towers or `max_tokens`, a box lies outside of what the
                encoder sees, or it ends without an answer.
        """
        if sample.messages[-1].role != "assistant":
            raise SampleError("it ends without an answer: nothing to learn; to ask the model, use prompt()", sample.id)
        try:
            encoded = self._encode(sample, self.media(sample, augmentation, seed, pool), answered=True)
        except _OutOfSightError:
            if augmentation is None:
                raise
            encoded = self._encode(sample, self.media(sample, pool=pool), answered=True)
        if not any((branch.labels != IGNORE).any() for branch in encoded.branches):
            raise SampleError("its answers are empty: nothing to learn", sample.id)
        return encoded

    def prompt(self, sample: Sample, pool: dict[str, Media] | None = None) -> Encoded:
        """Turn a sample into the one branch that asks for its last answer, which is left out; no label is set.

        The ids are those that `encode` puts before the answer, one for one.

        Raises:
            SampleError: as `encode`.
        """
        return self._encode(sample.prompt(), self.media(sample, pool=pool), answered=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without control tokens and outer whitespace."""
        kept = [int(i) for i in ids if i not in self.stop_ids]
        return self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def settled(self, ids: Sequence[int]) -> str:
        """Return the text of an answer still being written, as far as no further token can change it.

        A character may take several tokens, of which the first ones decode to the replacement mark; and a run of byte
        tokens (`<0xE2>`) is read as a whole.
        """
        kept = [int(i) for i in ids]
        while kept and _BYTE_TOKEN.fullmatch(self.tokenizer.convert_ids_to_tokens(kept[-1]) or ""):
            kept.pop()
        return self.decode(kept).rstrip("\N{REPLACEMENT CHARACTER}").rstrip()

    def boxes_from_text(self, text: str, sample: Sample, media: int = 0) -> list[Coords]:
        """Return the boxes an answer names, in the frame of the sample's file number `media`, clipped to it.

        Raises:
            SampleError: the sample has no such media, or it cannot be read.
        """
        shown = self.media(sample)
        if not 0 <= media < len(shown):
            raise SampleError(f"it has {len(shown)} media, number {media} was asked for", sample.id)
        frame, extent = shown[media].frame, shown[media].spec.size[::-1]
        back = invert(frame.affine)
        return [transform_box(box, back, frame.file_size) for box in self.box_format.parse_boxes(text, extent)]

    def media(
        self,
        sample: Sample,
        augmentation: Augmentation | None = None,
        seed: Seed = (),
        pool: dict[str, Media] | None = None,
    ) -> tuple[Media, ...]:
        """Return the sample's media in reading order, unread; arguments as for `encode`.

        Raises:
            SampleError: it shows a kind of media that no tower takes.
        """
        pool = {} if pool is None else pool
        keys = []
        paths = sample.media_key
        for part in sample.media:
            name = self._tower_of.get(part.type)
            if name is None:
                have = ", ".join(sorted(self._tower_of)) or "text only"
                raise SampleError(f"it shows one {part.type}, but the model takes: {have}", sample.id, part.path)
            own_seed = (*seed, paths.index(part.path))
            key = f"{name}:{part.path}" if augmentation is None else f"{name}:{part.path}@{own_seed}"
            key += " blank" * part.blank + " mirrored" * part.mirrored
            keys.append(key)
            if key not in pool:
                tower, token = self.towers[name], self.placeholder_ids[name]
                kept = self.kept.get(name) if augmentation is None else None
                pool[key] = Media(
                    name, key, token, tower.num_tokens, part.path, sample.id, tower.spec, augmentation, own_seed,
                    store=self.store, blank=part.blank, mirrored=part.mirrored, kept=kept,
                )  # fmt: skip
        return tuple(pool[key] for key in keys)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files, template.jinja and processor.json into a folder; `load` needs nothing else."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder)
        read = {name: tower.questions for name, tower in self.towers.items() if tower.questions is not None}
        (folder / "template.jinja").write_text(self.template.source, encoding="utf-8")
        questions = {name: questions.save(folder / f"questions_{name}") for name, questions in read.items()}
        state = {**self._state(), "questions": questions}
        (folder / "processor.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    def _state(self) -> dict[str, Any]:
        return {
            "template": self.template.name,
            "max_tokens": self.max_tokens,
            "shorten": self.shorten,
            "boxes": asdict(self.box_format),
            "towers": {
                name: {
                    "placeholder": tower.placeholder,
                    "kind": tower.kind,
                    "num_tokens": tower.num_tokens,
                    "spec": tower.spec.model_dump(mode="json"),
                }
                for name, tower in self.towers.items()
            },
        }

    def fingerprint(self) -> str:
        """Return a hash of what a sample's tokens depend on beside the sample: tokenizer, template, boxes, towers."""
        tokenizer = [self.tokenizer.backend_tokenizer.to_str(), str(self.tokenizer.special_tokens_map)]
        parts = [*tokenizer, self.template.source, json.dumps(self._state(), sort_keys=True)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: a file is missing or cannot be understood.
        """
        folder = Path(folder)
        for name in ("processor.json", "template.jinja", "tokenizer.json"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} is no processor folder: {name} is missing")
        state = json.loads((folder / "processor.json").read_text(encoding="utf-8"))
        # The generic class takes tokenizer.json as it stands; AutoTokenizer would rebuild some families' rules.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        source = (folder / "template.jinja").read_text(encoding="utf-8")
        questions = {
            name: QuestionEncoder.load(folder / f"questions_{name}", read)
            for name, read in state.get("questions", {}).items()
        }
        towers = {
            name: TowerInput(
                **{**tower, "spec": VisionSpec.model_validate(tower["spec"]), "questions": questions.get(name)}
            )
            for name, tower in state["towers"].items()
        }
        return cls(
            tokenizer,
            Template(state["template"], source, tokenizer),
            towers,
            max_tokens=state["max_tokens"],
            box_format=BoxFormat(**state["boxes"]) if "boxes" in state else BoxFormat(state["box_scale"]),
            shorten=state["shorten"],
        )

    def _encode(self, sample: Sample, media: tuple[Media, ...], answered: bool) -> Encoded:
        try:
            draft = self._draft(sample, media)
            if not answered:
                draft.roles.append("assistant")
                draft.contents.append(())
            branches, shortened = self._branches(draft, media, answered), 0
            if (length := _longest(branches)) > self.max_tokens:
                if self.shorten is None:
                    raise SampleError(
                        f"{length} tokens are more than max_tokens {self.max_tokens}; raise max_tokens (in a recipe "
                        "run.max_tokens), or shorten its text",
                        sample.id,
                    )
                branches, shortened = self._cut(draft, media, answered, sample.id)
            media = self._asked(draft, media)
        except SampleError:
            raise
        except ValueError as error:
            raise SampleError(str(error), sample.id) from error
        return Encoded(sample.id, branches, media, sample.meta, shortened)

    def _asked(self, draft: _Draft, media: tuple[Media, ...]) -> tuple[Media, ...]:
        """Tell media whose tower reads the question what is asked: all that users say in their turn.

        A turn ends where an answer begins, so a medium's tokens depend on nothing that comes later, and are the same in
        the prompt of every answer.
        """
        if all(self.towers[medium.tower].questions is None for medium in media):
            return media
        said: dict[int, list[str]] = defaultdict(list)
        turn_of: dict[int, int] = {}
        turn = 0
        for role, content in zip(draft.roles, draft.contents, strict=True):
            turn += role == "assistant"
            for piece in content:
                if isinstance(piece, Medium):
                    turn_of[piece.index] = turn
                elif role == "user":
                    said[turn].append(piece.strip())
        asked = []
        for index, medium in enumerate(media):
            questions = self.towers[medium.tower].questions
            text = " ".join(said[turn_of[index]])
            asked.append(medium if questions is None else medium.asked(questions.encode(text)))
        return tuple(asked)

    def _draft(self, sample: Sample, media: tuple[Media, ...]) -> _Draft:
        draft = _Draft()
        shown = 0
        for message in sample.messages:
            said = self._said(message, shown, sample, media)
            shown += sum(isinstance(piece, Medium) for piece in said)
            if said or message.role != "system":
                draft.roles.append(message.role)
                draft.contents.append(said)
        return draft

    def _said(self, message: Message, shown: int, sample: Sample, media: tuple[Media, ...]) -> Content:
        """Return a message's content: outer whitespace gone, boxes written, a line break between media and text."""
        joined: list[str | Medium] = []
        for part in message.content:
            if not isinstance(part, Text | BoxRef):
                joined.append(Medium(shown))
                shown += 1
                continue
            text = part.text if isinstance(part, Text) else self._box_text(part.box, sample, media)
            if joined and isinstance(joined[-1], str):
                joined[-1] += text
            else:
                joined.append(text)
        if joined and isinstance(joined[0], str):
            joined[0] = joined[0].lstrip()
        if joined and isinstance(joined[-1], str):
            joined[-1] = joined[-1].rstrip()
        for index in range(1, len(joined)):
            text = joined[index]
            if isinstance(text, str) and text and not text[0].isspace():
                joined[index] = "\n" + text
        return tuple(piece for piece in joined if piece != "")

    def _box_text(self, index: int, sample: Sample, media: tuple[Media, ...]) -> str:
        box = sample.meta.boxes[index]
        shown = media[box.media]
        size = shown.spec.size
        if len(box.coords) != 2 * len(size):
            kind = "volume" if shown.spec.is_volume else "picture"
            raise SampleError(
                f"box {index} has {len(box.coords)} coordinates, but a {kind} takes {2 * len(size)}",
                sample.id,
                shown.path,
            )
        self._check_frame(index, box.coords, shown, sample.id)
        coords = transform_box(box.coords, shown.frame.affine, size)
        if _flat(coords) and not _flat(box.coords):
            message = f"box {index} {box.coords} lies outside of what the encoder sees"
            raise _OutOfSightError(message, sample.id, shown.path)
        return self.box_format.format_box(coords, size[::-1])

    def _check_frame(self, index: int, coords: Coords, shown: Media, sample_id: str) -> None:
        """Refuse a box that is not in its file's own frame: in millimetres, or with y or z first."""
        size = shown.frame.file_size
        past = beyond(coords, size)
        if not past:
            return
        unit = "voxels" if shown.spec.is_volume else "pixels"
        frame = f"{' x '.join(map(str, size[::-1]))} {unit} ({'x, y, z'[: 3 * len(size) - 2]})"
        where = "lies outside of its file" if past == "outside" else "reaches out of its file"
        raise SampleError(
            f"box {index} {coords} {where}, which has {frame}; boxes are absolute, x first, in the file's own {unit}",
            sample_id,
            shown.path,
        )

    def _branches(self, draft: _Draft, media: tuple[Media, ...], answered: bool) -> tuple[Branch, ...]:
        branches = self.template.branches(draft.roles, draft.contents)
        if not answered:
            *history, last = branches[-1]
            branches = [[*(replace(turn, supervised=False) for turn in history), Turn(last.prompt, (), False)]]
        return tuple(self._branch(turns, media) for turns in branches)

    def _branch(self, turns: Sequence[Turn[Piece]], media: tuple[Media, ...]) -> Branch:
        ids: list[int] = []
        learned: list[tuple[int, int]] = []
        place: Place = "start"
        shown = 0
        for turn in turns:
            start = 0
            for pieces in (turn.prompt, turn.target):
                start = len(ids)
                for piece in pieces:
                    if isinstance(piece, str):
                        ids += self._text.encode(piece, place)
                        place = "continuation"
                        continue
                    place = "segment"
                    if isinstance(piece, int):
                        ids.append(piece)
                        continue
                    if piece.index != shown:
                        raise ValueError(f"template {self.template.name!r} changes the order of images and volumes")
                    ids += [media[shown].token] * media[shown].num_tokens
                    shown += 1
            if turn.supervised:
                learned.append((start, len(ids)))
        array = np.array(ids, dtype=np.int32)
        labels = np.full(len(ids), IGNORE, dtype=np.int32)
        for start, end in learned:
            labels[start:end] = array[start:end]
        labels[:1] = IGNORE
        return Branch(array, labels, shown)

    def _cut(
        self, draft: _Draft, media: tuple[Media, ...], answered: bool, sample_id: str
    ) -> tuple[tuple[Branch, ...], int]:
        """Cut the end of the longer of the last answer and last question, then of the other, until it fits."""
        texts = []
        for role in {"user", "assistant"} if answered else {"user"}:
            last = max((i for i, other in enumerate(draft.roles) if other == role), default=None)
            said = () if last is None else draft.contents[last]
            texts += sorted((len(piece), last, k) for k, piece in enumerate(said) if isinstance(piece, str))[-1:]
        removed = 0
        for length, index, k in sorted(texts, reverse=True):
            cut_to = partial(self._trimmed, draft, media, answered, index, k, draft.contents[index])
            # At least one character stays, so that an answer is never taught to be empty.
            fitting = bisect_right(range(1, length), self.max_tokens, key=lambda n, cut=cut_to: _longest(cut(n)))
            branches = cut_to(max(1, fitting))
            removed += length - max(1, fitting)
            if _longest(branches) <= self.max_tokens:
                return branches, removed
        raise SampleError(
            f"even with its last texts cut off it is longer than max_tokens {self.max_tokens}; raise max_tokens",
            sample_id,
        )

    def _trimmed(
        self,
        draft: _Draft,
        media: tuple[Media, ...],
        answered: bool,
        index: int,
        k: int,
        whole: Content,
        kept: int,
    ) -> tuple[Branch, ...]:
        """Return the branches with the first `kept` characters of text `k` of message `index`, and keep that draft."""
        draft.contents[index] = (*whole[:k], whole[k][:kept].rstrip(), *whole[k + 1 :])
        return self._branches(draft, media, answered)


def _flat(coords: Coords) -> bool:
    """Whether a box has no extent along some axis."""
    axes = len(coords) // 2
    return any(low >= high for low, high in zip(coords[:axes], coords[axes:], strict=True))


def _longest(branches: Sequence[Branch]) -> int:
    return max(len(branch.ids) for branch in branches)


def _register(tokenizer: PreTrainedTokenizerBase, placeholders: Mapping[str, str]) -> dict[str, int]:
    """Add the placeholders that the tokenizer lacks as special tokens; return tower name -> id."""
    known = {spelling: token_id for token_id, spelling in control_tokens(tokenizer).items()}
    missing = [text for text in placeholders.values() if text not in known]
    if len(set(placeholders.values())) < len(placeholders):
        raise ValueError(f"two towers share a placeholder: {dict(placeholders)}; give each its own")
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in missing], special_tokens=True)
    ids = {name: tokenizer.convert_tokens_to_ids(text) for name, text in placeholders.items()}
    for name, token_id in ids.items():
        if token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            raise ValueError(f"placeholder {placeholders[name]!r} of tower {name!r} already begins or ends texts")
    return ids
