"""The only form data takes between disk and processor: one conversation about images and volumes."""

import json
import math
import os.path
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from medmvl.core.explain import mistakes, shorten
from medmvl.core.lookup import choices_text

Model = TypeVar("Model", bound=BaseModel)
Roots = str | Path | Sequence[str | Path] | None
"""Folders that a sample's files must lie in; None leaves paths as given, unchecked."""

_CONFIG = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)
_PLACEHOLDER = re.compile(r"(<image3d>|<image>)")
_FRAGMENT = re.compile(r"(?P<file>.+)#(?P<fragment>\w+=[^/#&]*(?:&\w+=[^/#&]*)*)", re.DOTALL)
_PLAIN_PATH = re.compile(r"[^/#.\0\\][^/#\0\\]*(?:/[^/#.\0\\][^/#\0\\]*)*")  # for which join is all that `_inside` does
_MEDIA_OF = {"<image>": "image", "<image3d>": "volume"}
_REFERENCE_KEYS = ("id", "conversations", "image", "image3d", "answer", "task", "data_source", "domain", "split")
_REFERENCE_SET = frozenset(_REFERENCE_KEYS)
_TURNS = ("conversations", "messages")
_TURN_KEYS = {"from", "value"}
_REFERENCE_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


class SampleError(ValueError):
    """A sample that cannot be used; says which, and the file at fault when there is one.

    Args:
        message: what is wrong and what to do.
        sample_id: the sample's id ("?" when it has none).
        path: the file at fault.
    """

    def __init__(self, message: str, sample_id: str, path: str | Path | None = None) -> None:
        # All three go to args, so that the error survives the pickling on its way out of a worker process.
        super().__init__(message, sample_id, path)
        self.message, self.sample_id, self.path = message, sample_id, path

    def __str__(self) -> str:
        where = f" ({self.path})" if self.path is not None else ""
        return f"sample {self.sample_id!r}{where}: {self.message}"


def _placed(path: str, info: ValidationInfo) -> str:
    """Return the path itself, or, when the caller gave folders, its absolute place under one of them."""
    if "\0" in path:
        raise ValueError("the path holds a zero byte, which no file's name does")
    return path if info.context is None else _inside(path, info.context)


def _encodable(text: str) -> str:
    """Return the text itself; JSON can smuggle in halves of surrogate pairs, which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = ascii(text[error.start])
        raise ValueError(f"holds half of a character ({found} at {error.start}); repair the text's encoding") from None
    return text


Words = Annotated[str, AfterValidator(_encodable)]
FilePath = Annotated[str, Field(min_length=1), AfterValidator(_placed)]


class Text(BaseModel):
    """Words."""

    model_config = _CONFIG
    type: Literal["text"] = "text"
    text: Words


class Image(BaseModel):
    """A picture file; "scan.dcm#frame=3" names one frame of a multi-frame file (see `imaging.address`).

    With `blank` a model gets the frame of that file, and even grey in place of what is in it: a control. With
    `mirrored` it gets what the file shows with left and right swapped: a probe.
    """

    model_config = _CONFIG
    type: Literal["image"] = "image"
    path: FilePath
    blank: bool = False
    mirrored: bool = False


class Volume(BaseModel):
    """A 3D file or series folder; "scan.npy#unit=HU" says what the file does not (see `imaging.address`).

    `blank`, `mirrored`: as for `Image`.
    """

    model_config = _CONFIG
    type: Literal["volume"] = "volume"
    path: FilePath
    blank: bool = False
    mirrored: bool = False


class BoxRef(BaseModel):
    """The place in a text where box number `box` of `meta.boxes` is written."""

    model_config = _CONFIG
    type: Literal["box"] = "box"
    box: int = Field(ge=0)


Part = Annotated[Text | Image | Volume | BoxRef, Field(discriminator="type")]


class Message(BaseModel):
    """What one side says; a plain string as content is one Text part."""

    model_config = _CONFIG
    role: Literal["system", "user", "assistant"]
    content: tuple[Part, ...]

    @field_validator("content", mode="before")
    @classmethod
    def _text_alone(cls, content: object) -> object:
        return ({"type": "text", "text": content},) if isinstance(content, str) else content


class Box(BaseModel):
    """A box on one of the sample's media.

    `coords` are absolute in the file's own frame, lower corner first, upper corner exclusive: (x0, y0, x1, y1) in
    pixels on an image, (x0, y0, z0, x1, y1, z1) in voxels in a volume. `media` counts the media in reading order.
    """

    model_config = _CONFIG
    media: int = Field(default=0, ge=0)
    coords: tuple[float, ...] = Field(validation_alias=AliasChoices("coords", "box", "xyxy", "corners"))
    label: str | None = None

    @field_validator("coords", mode="before")
    @classmethod
    def _two_corners(cls, coords: object) -> object:
        if isinstance(coords, list | tuple) and len(coords) == 2 and all(isinstance(c, list | tuple) for c in coords):
            return (*coords[0], *coords[1])
        return coords

    @field_validator("coords")
    @classmethod
    def _ordered(cls, coords: tuple[float, ...]) -> tuple[float, ...]:
        if len(coords) not in (4, 6):
            raise ValueError(f"a box has 4 coordinates (image) or 6 (volume), got {len(coords)}: {coords}")
        half = len(coords) // 2
        low, high = coords[:half], coords[half:]
        if not all(map(math.isfinite, coords)) or any(a > b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"a box is (lower corner, upper corner) in finite numbers, got {coords}")
        return coords


class Meta(BaseModel):
    """What is known about a sample beside its text; further keys are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", coerce_numbers_to_str=True)
    patient: str = ""
    study: str = ""
    modality: str = ""
    answer_type: str = ""
    boxes: tuple[Box, ...] = ()
    choices: tuple[str, ...] = ()
    attributes: dict[str, str] = {}


class Sample(BaseModel):
    """One conversation about zero or more images and volumes."""

    model_config = _CONFIG
    id: Words
    messages: tuple[Message, ...] = Field(min_length=1)
    source: str = ""
    task: str = ""
    split: str = ""
    meta: Meta = Meta()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        boxes = self.meta.boxes
        kinds = []
        for turn, message in enumerate(self.messages):
            for part in message.content:
                if isinstance(part, Image | Volume):
                    if message.role == "assistant":
                        raise ValueError(
                            f"messages[{turn}]: an assistant answers in text and boxes, not with {part.path!r}"
                        )
                    kinds.append(part.type)
                elif isinstance(part, BoxRef) and part.box >= len(boxes):
                    raise ValueError(f"messages[{turn}] shows box {part.box}, but meta.boxes has {len(boxes)}")
        for index, box in enumerate(boxes):
            if box.media >= len(kinds):
                raise ValueError(f"meta.boxes[{index}] lies on media {box.media}, but the sample has {len(kinds)}")
            wanted = 4 if kinds[box.media] == "image" else 6
            if len(box.coords) != wanted:
                raise ValueError(f"meta.boxes[{index}] needs {wanted} coordinates: its media is one {kinds[box.media]}")
        return self

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], root: Roots = None) -> "Sample":
        """Read a canonical sample, or an annotation of the reference implementation (key `conversations`).

        In a reference annotation each `<image>` / `<image3d>` of a human turn takes the next path of the lists `image`
        / `image3d`; the text around it is kept, stripped at its outer ends only. `answer` adds the last assistant turn;
        conversations that end with one already must say the same.

        Args:
            data: the decoded JSON object; it is not changed.
            root: the folder (or folders) that the files lie in. Relative paths are joined to the first folder that has
                them. A path that leaves every folder is refused, whatever its spelling.

        Raises:
            SampleError: names the sample, everything wrong with it, and the nearest known key.
        """
        if not isinstance(data, Mapping):
            raise SampleError(f"a sample is a JSON object, got {type(data).__name__}", "?")
        sample_id = str(data.get("id", "?"))
        if data.keys().isdisjoint(_TURNS):
            raise SampleError(_no_turns(data), sample_id)
        canonical = _from_reference(data, sample_id) if "conversations" in data else data
        folders = None if root is None else _folders(root)
        plain = _from_plain(canonical, folders) if cls is Sample else None
        if plain is not None:
            return plain
        try:
            return cls.model_validate(canonical, context=folders)
        except ValidationError as error:
            found = mistakes(error, cls)
            lines = [f"{mistake.dotted}: {mistake.message}" if mistake.path else mistake.message for mistake in found]
            paths = [
                item["input"]
                for item in error.errors()
                if item["loc"][-1:] == ("path",) and item["type"] == "value_error"
            ]
            raise SampleError("; ".join(lines), sample_id, paths[0] if paths else None) from None

    def to_dict(self, root: str | Path | None = None) -> dict[str, Any]:
        """Return the canonical JSON object; paths under `root` become relative to it. `from_dict` reads it back."""
        base = None if root is None else os.path.abspath(root)
        return {
            "id": self.id,
            "messages": [
                {"role": message.role, "content": [_part_dict(part, base) for part in message.content]}
                for message in self.messages
            ],
            "source": self.source,
            "task": self.task,
            "split": self.split,
            "meta": _meta_dict(self.meta),
        }

    def to_json(self, root: str | Path | None = None) -> str:
        """Return `to_dict` as one line of JSON: character for character what `json` writes, in less time."""
        base = None if root is None else os.path.abspath(root)
        messages = [
            f'{{"role":"{message.role}","content":[{",".join([_part_json(part, base) for part in message.content])}]}}'
            for message in self.messages
        ]
        meta = _meta_dict(self.meta)
        texts = f'"source":{_quoted(self.source)},"task":{_quoted(self.task)},"split":{_quoted(self.split)}'
        written = _ENCODER.encode(meta) if meta else "{}"
        return f'{{"id":{_quoted(self.id)},"messages":[{",".join(messages)}],{texts},"meta":{written}}}'

    @property
    def media(self) -> tuple[Image | Volume, ...]:
        """Images and volumes in reading order."""
        return tuple(p for message in self.messages for p in message.content if isinstance(p, Image | Volume))

    @property
    def media_key(self) -> tuple[str, ...]:
        """Paths of the media in reading order: samples with equal keys can share one row."""
        return tuple([p.path for message in self.messages for p in message.content if isinstance(p, Image | Volume)])

    @property
    def patient(self) -> str:
        """Whom the sample is about: `meta.patient`, else the first media's path, else the id."""
        return self.meta.patient or next(iter(self.media_key), self.id)

    @property
    def answer(self) -> str:
        """Text of the last assistant message, boxes left out; "" without one."""
        for message in reversed(self.messages):
            if message.role == "assistant":
                return "".join(part.text for part in message.content if isinstance(part, Text))
        return ""

    def prompt(self) -> "Sample":
        """Return the sample without its closing assistant messages: what a model is asked."""
        end = len(self.messages)
        while end and self.messages[end - 1].role == "assistant":
            end -= 1
        if end == 0:
            raise SampleError("the assistant speaks alone: there is nothing to ask a model", self.id)
        return self if end == len(self.messages) else self.model_copy(update={"messages": self.messages[:end]})


def _folders(root: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    roots = (root,) if isinstance(root, str | Path) else tuple(root)
    if not roots:
        raise ValueError("roots is empty: give at least one folder, or None to leave paths unchecked")
    return tuple([_absolute(os.fspath(folder)) for folder in roots])


def _absolute(folder: str) -> str:
    return _normal(folder) if os.path.isabs(folder) else os.path.abspath(folder)


_normal = lru_cache(maxsize=256)(os.path.normpath)  # the same few roots come with every sample


def split_fragment(path: str) -> tuple[str, str]:
    """Return the file and what stands after its last "#": "scan.dcm#frame=3" -> ("scan.dcm", "frame=3").

    Only key=value pairs joined by "&", without a slash, are a fragment; any other "#" belongs to the file's name.
    """
    found = _FRAGMENT.fullmatch(path)
    return (found["file"], found["fragment"]) if found else (path, "")


def _inside(path: str, roots: tuple[str, ...]) -> str:
    """Return the absolute path of a file that lies under one of `roots`, which are absolute folders."""
    # The check is lexical on purpose: a symlink that the user laid inside a root is followed. The fragment is split
    # off last, as a reader will do it: "..#frame=0" is the folder above.
    if len(roots) == 1 and _PLAIN_PATH.fullmatch(path) and roots[0] != os.sep:
        return f"{roots[0]}{os.sep}{path}" if os.sep == "/" else os.path.normpath(os.path.join(roots[0], path))
    allowed = []
    for root in roots:
        file, fragment = split_fragment(os.path.normpath(os.path.join(root, path)))
        file = os.path.normpath(file)
        if file == root or file.startswith(root.rstrip(os.sep) + os.sep):
            allowed.append((file, f"#{fragment}" if fragment else ""))
    if not allowed:
        raise ValueError(f"the path leaves the given folders ({', '.join(roots)}); move the file or add its folder")
    existing = (found for found in allowed if os.path.exists(found[0])) if len(allowed) > 1 else iter(allowed)
    return "".join(next(existing, allowed[0]))


def _from_plain(data: Mapping[str, Any], folders: tuple[str, ...] | None) -> Sample | None:
    """Return what validation makes of a canonical sample, in a third of its time; None for one that needs validation.

    Only rows in which nothing is to be converted, and nothing wrong, are made here; the others are left to pydantic,
    so that there is one place that explains mistakes.
    """
    if not data.keys() <= _SAMPLE_KEYS:
        return None
    try:
        given, meta = data["messages"], _plain_meta(data.get("meta", {}))
        if meta is None or type(given) not in (list, tuple) or not given:
            return None
        values = {
            "id": _plain_text(data["id"]),
            "messages": tuple([_plain_message(message, folders) for message in given]),
            "source": _plain_text(data.get("source", "")),
            "task": _plain_text(data.get("task", "")),
            "split": _plain_text(data.get("split", "")),
            "meta": meta,
        }
        sample = _made(Sample, values, set(data))
        if meta.boxes or any([type(part) is BoxRef for message in sample.messages for part in message.content]):
            sample._consistent()  # type: ignore[operator]  # the decorator hides that it is a method
    except (ValueError, TypeError, KeyError):
        return None
    return sample


def _plain_message(message: Any, folders: tuple[str, ...] | None) -> Message:
    """Return a message; any error says that it needs validation."""
    role, content = message["role"], message["content"]
    if type(message) is not dict or len(message) != 2 or role not in ("user", "assistant", "system"):
        raise ValueError
    if type(content) is str:
        content = ({"type": "text", "text": content},)
    elif type(content) not in (list, tuple):
        raise ValueError
    parts = tuple([_plain_part(part, role, folders) for part in content])
    return _made(Message, {"role": role, "content": parts}, {"role", "content"})


def _plain_part(part: Any, role: str, folders: tuple[str, ...] | None) -> Text | Image | Volume | BoxRef:
    kind = part["type"]
    if type(part) is not dict or len(part) != 2:
        raise ValueError
    if kind == "text":
        return _made(Text, {"type": kind, "text": _plain_text(part["text"])}, {"type", "text"})
    if kind == "box":
        if type(part["box"]) is not int or part["box"] < 0:
            raise ValueError
        return _made(BoxRef, {"type": kind, "box": part["box"]}, {"type", "box"})
    path = _plain_text(part["path"])
    if kind not in ("image", "volume") or role == "assistant" or not path or "\0" in path:
        raise ValueError
    values = {"type": kind, "path": path if folders is None else _inside(path, folders), **_AS_IT_IS}
    return _made(Image if kind == "image" else Volume, values, {"type", "path"})


def _plain_meta(data: Any) -> Meta | None:
    if type(data) is not dict:
        return None
    if not data:
        return _EMPTY_META
    values: dict[str, Any] = {**_NO_META, "attributes": {}}
    extra = {}
    for key, value in data.items():
        if type(key) is not str or not key.isascii():
            return None
        if key not in values:
            extra[key] = value
        elif type(value) is not str or _NO_META[key] != "":
            return _validated_meta(data)
        else:
            values[key] = _plain_text(value)
    meta = _made(Meta, values, set(data))
    _set_extra(meta, extra)
    return meta


def _validated_meta(data: Mapping[str, Any]) -> Meta | None:
    try:
        return Meta.model_validate(data)
    except ValidationError:
        return None


def _made(model: type[Model], values: dict[str, Any], given: set[str]) -> Model:
    """Return a model of values that need no validation, as `model_construct` does, with less ado."""
    made = object.__new__(model)
    _set_values(made, values)
    _set_given(made, given)
    _set_extra(made, None)
    _set_private(made, None)
    return made


_set_values, _set_given, _set_extra, _set_private = (
    BaseModel.__dict__[slot].__set__  # past the guard of frozen models
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)


def _plain_text(text: Any) -> str:
    """Return a text that is one; any error says that it needs validation."""
    if type(text) is not str:
        raise ValueError
    if not text.isascii():
        text.encode()
    return text


_SAMPLE_KEYS = Sample.model_fields.keys()
_AS_IT_IS = {"blank": False, "mirrored": False}
_EMPTY_META = Meta()
_NO_META: dict[str, Any] = dict(_EMPTY_META)


def _meta_dict(meta: Meta) -> dict[str, Any]:
    """Return what differs from the defaults, as JSON."""
    if meta is _EMPTY_META:
        return {}
    extra = meta.__pydantic_extra__ or {}
    if not (meta.boxes or meta.choices or meta.attributes) and all([type(value) is str for value in extra.values()]):
        return {key: value for key, value in meta.__dict__.items() if value and key in _META_TEXTS} | extra
    data = meta.model_dump(mode="json", exclude={"boxes"}, exclude_defaults=True)
    if meta.boxes:
        data["boxes"] = [box.model_dump(mode="json", exclude_none=True) for box in meta.boxes]
    return data


_META_TEXTS = tuple(key for key, value in _NO_META.items() if value == "")


def _part_dict(part: Text | Image | Volume | BoxRef, base: str | None) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, BoxRef):
        return {"type": "box", "box": part.box}
    changes = {name: True for name in _AS_IT_IS if getattr(part, name)}
    return {"type": part.type, "path": relative_path(part.path, base), **changes}


def relative_path(path: str, base: str | None) -> str:
    """Return a path as seen from the absolute folder `base` when it lies there, else as it is; fragments stay."""
    if base is None or not path.startswith(base):
        return path
    file, fragment = split_fragment(path)
    if file.startswith(base.rstrip(os.sep) + os.sep):
        file = os.path.relpath(file, base)
    return f"{file}#{fragment}" if fragment else file


def _part_json(part: Text | Image | Volume | BoxRef, base: str | None) -> str:
    if type(part) is Text:
        return f'{{"type":"text","text":{_quoted(part.text)}}}'
    if type(part) is BoxRef or part.blank or part.mirrored:
        return _ENCODER.encode(_part_dict(part, base))
    return f'{{"type":"{part.type}","path":{_quoted(relative_path(part.path, base))}}}'


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_quoted = json.encoder.encode_basestring  # a quoted JSON string, characters beyond ASCII kept


def _from_reference(data: Mapping[str, Any], sample_id: str) -> dict[str, Any]:
    """Turn a reference annotation into a canonical dict."""
    further = [str(key) for key in data if key not in _REFERENCE_SET]
    # Published sets carry keys of their own ("model", "conversation_id"), which are kept in meta; one that is all but a
    # known key is a mistake where that is not there.
    misspelt = [key for key in further if (known := _almost_known(key)) and data.get(known) is None]
    if misspelt:
        hints = [f"unknown key {key!r}; {choices_text(key, _REFERENCE_KEYS, 'known keys')}" for key in misspelt]
        raise SampleError("; ".join(hints), sample_id)
    if not isinstance(data["conversations"], list | tuple):
        raise SampleError(f"'conversations' is a list of turns, got {type(data['conversations']).__name__}", sample_id)
    paths = {kind: _path_list(data, key, sample_id) for key, kind in (("image", "image"), ("image3d", "volume"))}
    counts = dict.fromkeys(paths, 0)
    messages = []
    for index, turn in enumerate(data["conversations"]):
        role, text = _reference_turn(turn, index, sample_id)
        content: list[dict[str, Any]] = []
        whole = role == "assistant" or "<image" not in text
        for piece in [text if role == "assistant" else text.strip()] if whole else _PLACEHOLDER.split(text.strip()):
            kind = _MEDIA_OF.get(piece) if role == "user" else None
            if kind is None:
                content += [{"type": "text", "text": piece}] if piece or role == "assistant" else []
                continue
            if counts[kind] < len(paths[kind]):
                content.append({"type": kind, "path": paths[kind][counts[kind]]})
            counts[kind] += 1
        messages.append({"role": role, "content": content})
    for placeholder, kind in _MEDIA_OF.items():
        if counts[kind] != len(paths[kind]):
            swapped = sum(counts.values()) == sum(map(len, paths.values()))
            hint = "<image> is a picture's place, <image3d> a volume's" if swapped else "give one path per placeholder"
            said = f"the text shows {placeholder} {counts[kind]} times, but {len(paths[kind])} {kind} paths are given"
            raise SampleError(f"{said}; {hint}", sample_id)
    if data.get("answer") is not None:
        answer = str(data["answer"])
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": answer})
        elif messages[-1]["content"][0]["text"].strip() != answer.strip():
            raise SampleError(
                "the conversations end with a gpt turn, and 'answer' says something else; keep the true one",
                sample_id,
            )
    meta = {key: data[key] for key in ("domain", *further) if data.get(key) is not None}
    canonical = {"messages": messages, "meta": meta, "source": data.get("data_source") or ""}
    canonical |= {key: data[key] for key in ("id", "task", "split") if data.get(key) is not None}
    return canonical


@lru_cache(maxsize=1024)
def _almost_known(key: str) -> str:
    return next(iter(get_close_matches(key, _REFERENCE_KEYS, n=1, cutoff=0.85)), "")


def _no_turns(data: Mapping[str, Any]) -> str:
    """Say that nobody says anything, and which key was perhaps meant to."""
    folded = {str(key).casefold(): str(key) for key in data}
    near = {wanted: get_close_matches(wanted, folded, n=1, cutoff=0.8) for wanted in _TURNS}
    hints = [f"; {folded[found[0]]}: did you mean {wanted!r}?" for wanted, found in near.items() if found]
    return f"'conversations' (or 'messages') is missing{''.join(hints)}"


def _path_list(data: Mapping[str, Any], key: str, sample_id: str) -> list[str]:
    value = data.get(key)
    if value is None:
        return []
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
        raise SampleError(f"{key!r} is a list of paths, got {value!r}", sample_id)
    return list(paths)


def _reference_turn(turn: object, index: int, sample_id: str) -> tuple[str, str]:
    if not isinstance(turn, Mapping) or not turn.keys() >= _TURN_KEYS or not isinstance(turn["value"], str):
        message = f"conversations[{index}] is not {{'from': ..., 'value': text}}: {shorten(turn)}"
        raise SampleError(message, sample_id)
    role = _REFERENCE_ROLES.get(turn["from"])
    if role is None:
        hint = choices_text(str(turn["from"]), _REFERENCE_ROLES)
        raise SampleError(f"conversations[{index}] is from {turn['from']!r}; {hint}", sample_id)
    return role, turn["value"]
