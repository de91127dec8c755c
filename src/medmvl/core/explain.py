"""Turns pydantic's validation errors into sentences: where, what was given, the nearest or all choices."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from medmvl.core.lookup import choices_text

_QUOTED = re.compile(r"'([^']*)'")
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong: the keys that lead there, and a sentence."""

    path: Path
    message: str

    @property
    def dotted(self) -> str:
        """The path as text: "stages[0].tune.llm"."""
        text = ""
        for part in self.path:
            text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
        return text


def mistakes(error: ValidationError, model: type[BaseModel]) -> list[Mistake]:
    """Return every mistake of `error`, raised while validating `model`, in the order of the fields."""
    found = []
    for item in error.errors(include_url=False):
        path, parent = _walk(model, item["loc"])
        found.append((item["type"], Mistake(path, _sentence(item, path, parent))))
    # A list whose every item is wrong is called too short as well: only the items' own mistakes help.
    deeper = {mistake.path[:depth] for _, mistake in found for depth in range(len(mistake.path))}
    return [mistake for kind, mistake in found if kind != "too_short" or mistake.path not in deeper]


def shorten(value: object, limit: int = 80) -> str:
    """Return `repr(value)`, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _sentence(item: Mapping[str, Any], path: Path, parent: type[BaseModel] | None) -> str:
    kind, given = item["type"], item["input"]
    key = str(path[-1]) if path else ""
    if kind == "extra_forbidden":
        return f"unknown key; {choices_text(key, field_names(parent), 'known keys')}"
    if kind == "missing":
        return "required key is missing"
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in item["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return f"got {shorten(given)}; {choices_text(str(given), choices)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        choices = [
            choice.strip("'") for choice in item["ctx"].get("expected_tags", "text, image, volume, box").split(", ")
        ]
        tag = item["ctx"].get("tag", "")
        return f"unknown type {tag!r}; {choices_text(tag, choices)}"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    said = f"{item['msg'][0].lower()}{item['msg'][1:]}; got {shorten(given)} ({type(given).__name__})"
    return f"{said}{_as_number(given)}" if kind in ("float_type", "int_type") else said


def _as_number(given: object) -> str:
    """Say how to write a number that came as text: YAML 1.1, as PyYAML reads it, takes 1e-3 for text."""
    try:
        number = float(given) if isinstance(given, str) else math.nan
    except ValueError:
        return ""
    if not math.isfinite(number):
        return ""
    text = repr(int(number) if number.is_integer() else number)
    plain = text if "." in text or "e" not in text else text.replace("e", ".0e")  # 1.0e-05: a number in both versions
    return f"; write {plain}, or let medmvl read the file itself (PyYAML takes 1e-3 for text)"


def field_names(model: type[BaseModel] | None) -> list[str]:
    """Return the keys a model accepts; none for no model."""
    return list(model.model_fields) if model else []


def step(annotation: Any, part: int | str) -> tuple[Any, type[BaseModel] | None]:
    """Go one key down in a type: return the type below and, when a model holds the key, that model."""
    members = [_plain(member) for member in _members(annotation)]
    models = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
    for model in models:
        if part in model.model_fields:
            return model.model_fields[str(part)].annotation, model
    for member in members:
        arguments = get_args(member)
        if arguments and get_origin(member) in (tuple, list, dict):
            return arguments[1] if get_origin(member) is dict else arguments[0], None
    return None, models[0] if models else None


def model_of_values(annotation: Any) -> type[BaseModel] | None:
    """Return the model M of a type dict[str, M], else None."""
    for member in _members(annotation):
        arguments = get_args(_plain(member))
        if (
            get_origin(_plain(member)) is dict
            and isinstance(arguments[1], type)
            and issubclass(arguments[1], BaseModel)
        ):
            return arguments[1]
    return None


def _walk(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[Path, type[BaseModel] | None]:
    """Follow pydantic's location through the annotations.

    Returns the keys as they stand in the file (pydantic adds the names of union members and the mark "[key]") and
    the model that holds the last key.
    """
    path: list[int | str] = []
    parent: type[BaseModel] | None = None
    here: Any = model
    for part in loc:
        members = [_plain(member) for member in _members(here)]
        tagged = [member for member in members if part in _tags(member)]
        if len(members) > 1 and tagged:
            here = tagged[0]
        elif part != "[key]":
            path.append(part)
            here, parent = step(here, part)
    return tuple(path), parent


def _plain(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _members(annotation: Any) -> tuple[Any, ...]:
    annotation = _plain(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return get_args(annotation)
    return (annotation,)


def _tags(member: Any) -> set[str | int]:
    """Names under which a union member may appear in a location: its class name, or its literal `type`."""
    names: set[str | int] = {getattr(member, "__name__", str(member)), str(member)}
    if isinstance(member, type) and issubclass(member, BaseModel) and "type" in member.model_fields:
        literal = member.model_fields["type"].annotation
        if get_origin(literal) is Literal:
            names.update(get_args(literal))
    return names
