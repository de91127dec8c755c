"""Strict settings from YAML: one `extends`, `a.b=value` overrides, and every mistake in one answer."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from medmvl.core.explain import Mistake, mistakes, model_of_values, shorten, step
from medmvl.core.explain import Path as Keys
from medmvl.core.lookup import choices_text

if TYPE_CHECKING:
    from ruamel.yaml import YAML, Node

Model = TypeVar("Model", bound=BaseModel)
SUFFIX = ".yaml"
_BREAKS = re.compile("[\x85\u2028\u2029]")


class Strict(BaseModel):
    """Base of all settings: frozen, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class ConfigError(ValueError):
    """Settings that cannot be used; the message lists every mistake.

    Args:
        source: the file or name that was asked for.
        lines: one sentence per mistake, each with its place.
    """

    def __init__(self, source: str, lines: Sequence[str]) -> None:
        super().__init__(source, tuple(lines))
        self.source, self.lines = source, tuple(lines)

    def __str__(self) -> str:
        count = "1 mistake" if len(self.lines) == 1 else f"{len(self.lines)} mistakes"
        return "\n  ".join([f"{self.source}: {count}", *self.lines])


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a value was written: a line of a file, or an override (line 0)."""

    where: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.where}, line {self.line}" if self.line else self.where


Origins = dict[Keys, _Origin]


def load(
    model: type[Model],
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    shipped: Path | None = None,
) -> Model:
    """Read settings, apply what they extend and the overrides, and validate.

    Args:
        model: the pydantic model of the settings.
        source: a YAML file, the name of a file in `shipped`, or the decoded mapping itself, in which paths may be
            `Path`s and lists tuples.
        overrides: "a.b=value" with the value in YAML; list items by index or by their `name` ("stages.align.epochs=2").
        shipped: the folder whose files may be named without path and suffix.

    Raises:
        ConfigError: all mistakes, each with file and line (or override), dotted path, what was given and the choices.
    """
    wrong: list[str] = []
    seen: list[Path] = []
    if isinstance(source, Mapping):
        name, folder = model.__name__.lower(), Path()
        data, origins = _plain(source), {}
    else:
        path = _find(str(source), Path(), shipped, str(source))
        name, folder = str(source), path.parent
        data, origins = _read(path, wrong)
        seen.append(path.resolve())
    data, origins = _extend(data, origins, folder, shipped, seen, wrong)
    data.pop("extends", None)
    for override in overrides:
        problem = _override(model, data, origins, override)
        if problem:
            wrong.append(f"override {override!r}: {problem}")
    try:
        result = model.model_validate(data)
    except ValidationError as error:
        wrong += [_line(mistake, origins) for mistake in mistakes(error, model)]
    if wrong:
        raise ConfigError(name, wrong)
    return result


def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[Keys, int]]:
    """Read a YAML 1.2 file that holds one mapping; return it and the line on which every key stands.

    Raises:
        ConfigError: the file is missing or no YAML, holds no mapping, or repeats keys.
    """
    wrong: list[str] = []
    data, origins = _read(Path(path), wrong)
    if wrong:
        raise ConfigError(str(path), wrong)
    return data, {keys: origin.line for keys, origin in origins.items()}


def load_yaml(text: str) -> Any:
    """Return what YAML 1.2 text holds; the counterpart of `dump_yaml`."""
    return _yaml().load(text)


def dump_yaml(data: object) -> str:
    """Return plain data (mappings, lists, text, numbers) as YAML 1.2; keys keep their order."""
    stream = StringIO()
    _yaml().dump(data, stream)
    return stream.getvalue()


@cache
def _yaml() -> "YAML":
    # Not PyYAML: its YAML 1.1 reads 1e-3 as text and `no` as False.
    from ruamel.yaml import YAML, ScalarNode
    from ruamel.yaml.representer import SafeRepresenter

    class Representer(SafeRepresenter):
        """Quotes the line breaks that only YAML takes for such: written as they are, they are read as a blank."""

        def text(self, data: str) -> ScalarNode:
            return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if _BREAKS.search(data) else None)

    Representer.add_representer(str, Representer.text)
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.allow_duplicate_keys = True  # found by _walk, all at once and with both lines
    return yaml


def _read(path: Path, wrong: list[str]) -> tuple[dict[str, Any], Origins]:
    """Read one file; what can be survived goes to `wrong`, the rest is raised."""
    from ruamel.yaml import YAMLError

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from error
    try:
        node = _yaml().compose(text)
        data = _yaml().load(text)
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(str(path), [f"{place}no valid YAML: {problem}"]) from None
    if data is None:
        raise ConfigError(str(path), ["the file is empty"])
    if not isinstance(data, dict):
        raise ConfigError(str(path), [f"must hold a mapping (key: value), holds {shorten(data)}"])
    origins: Origins = {}
    for keys, line in _walk(node, ()):
        if keys in origins:
            dotted = Mistake(keys, "").dotted
            wrong.append(f"{path}, line {line}: {dotted}: key stands twice (first on line {origins[keys].line})")
        origins.setdefault(keys, _Origin(str(path), line))  # ruamel takes the first of two values as well
    return data, origins


def _walk(node: "Node", keys: Keys) -> Iterator[tuple[Keys, int]]:
    """Yield the path and line of every key and list item under a node of the YAML tree."""
    from ruamel.yaml import MappingNode, SequenceNode

    if isinstance(node, MappingNode):
        for key, value in node.value:
            here = (*keys, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _walk(value, here)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            here = (*keys, index)
            yield here, value.start_mark.line + 1
            yield from _walk(value, here)


def _find(name: str, folder: Path, shipped: Path | None, asked_in: str) -> Path:
    """Return the file that a name or path means; a path is taken relative to `folder`."""
    path = folder / name
    if path.is_file():
        return path
    if shipped is not None and (shipped / f"{name}{SUFFIX}").is_file() and Path(name).name == name:
        return shipped / f"{name}{SUFFIX}"
    known = [p.stem for p in shipped.glob(f"*{SUFFIX}") if not p.name.startswith("_")] if shipped else []
    looked = f"no file {str(path)!r}" + (f" and no shipped name {name!r}" if shipped else "")
    raise ConfigError(asked_in, [f"{looked}; {choices_text(Path(name).stem, known, 'shipped names')}"])


def _extend(
    data: dict[str, Any],
    origins: Origins,
    folder: Path,
    shipped: Path | None,
    seen: list[Path],
    wrong: list[str],
) -> tuple[dict[str, Any], Origins]:
    """Lay `data` over the settings it extends, and those over what they extend."""
    base = data.get("extends")
    if base is None:
        return data, origins
    where = str(origins.get(("extends",), "extends"))
    if not isinstance(base, str):
        raise ConfigError(where, [f"extends: name one file, got {shorten(base)}"])
    path = _find(base, folder, shipped, f"{where}: extends")
    if path.resolve() in seen:
        chain = " -> ".join(step.name for step in [*seen, path])
        raise ConfigError(where, [f"extends: goes in a circle: {chain}"])
    under, under_origins = _read(path, wrong)
    seen = [*seen, path.resolve()]
    under, under_origins = _extend(under, under_origins, path.parent, shipped, seen, wrong)
    merged = dict(under_origins)
    return _merge(under, data, (), merged, origins), merged


def _plain(value: Any) -> Any:
    """Return a copy as YAML would hold it: paths as text, sequences as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _merge(
    under: dict[str, Any], over: dict[str, Any], keys: Keys, merged: Origins, origins: Origins
) -> dict[str, Any]:
    """Mappings are merged key by key; anything else, lists too, is replaced whole."""
    result = dict(under)
    for key, value in over.items():
        here = (*keys, str(key))
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            result[key] = _merge(under[key], value, here, merged, origins)
            continue
        _forget(merged, here)
        merged.update({path: origin for path, origin in origins.items() if path[: len(here)] == here})
        result[key] = value
    return result


def _forget(origins: Origins, keys: Keys) -> None:
    for path in [path for path in origins if path[: len(keys)] == keys]:
        del origins[path]


def _override(model: type[BaseModel], data: dict[str, Any], origins: Origins, override: str) -> str | None:
    """Set one value in place; return what is wrong with the override, if anything."""
    from ruamel.yaml import YAMLError

    dotted, equals, text = override.partition("=")
    parts = dotted.strip().replace("[", ".").replace("]", "").split(".")
    if not equals or not all(parts):
        return "must look like a.b=value"
    try:
        value = _yaml().load(text)
    except (YAMLError, ValueError) as error:
        return f"the value is no valid YAML: {getattr(error, 'problem', None) or error}"
    here: Any = data
    annotation: Any = model
    keys: Keys = ()
    written = _Origin(f"override {override!r}")
    while parts:
        slot, used = _slot(here, parts, annotation)
        if slot is None:
            place = Mistake(keys, "").dotted
            if isinstance(here, list):
                return f"{place} has no item {parts[0]!r}; {choices_text(parts[0], _item_names(here), 'items')}"
            return f"{place} is {shorten(here)}, it has no keys below; give it a whole new value"
        keys, parts = (*keys, slot), parts[used:]
        annotation, _ = step(annotation, slot)
        if not parts:
            here[slot] = value
        elif isinstance(slot, str) and here.get(slot) is None:
            here[slot], origins[keys] = {}, written
        here = here[slot]
    _forget(origins, keys)
    origins[keys] = written
    return None


def _slot(here: object, parts: list[str], annotation: Any) -> tuple[str | int | None, int]:
    """Return the key or index that `parts` begins with, and how many parts it takes (keys may hold dots)."""
    if isinstance(here, list):
        names = [item.get("name") if isinstance(item, dict) else None for item in here]
        if parts[0] in names:
            return names.index(parts[0]), 1
        return (int(parts[0]), 1) if parts[0].isdecimal() and int(parts[0]) < len(here) else (None, 0)
    if not isinstance(here, dict):
        return None, 0
    for used in range(len(parts), 0, -1):
        if ".".join(parts[:used]) in here:
            return ".".join(parts[:used]), used
    below = model_of_values(annotation)
    used = 1
    while below and used < len(parts) and parts[used] not in below.model_fields:
        used += 1
    return ".".join(parts[:used]), used


def _item_names(items: list[Any]) -> list[str]:
    return [str(item.get("name", index)) if isinstance(item, dict) else str(index) for index, item in enumerate(items)]


def _line(mistake: Mistake, origins: Origins) -> str:
    """Return "file, line n: a.b: what is wrong", with the line of the closest key that was written.

    What is wrong with a mapping as a whole may come from an override below it, which is told as well.
    """
    keys = path = mistake.path
    while keys and keys not in origins:
        keys = keys[:-1]
    below = (one for at, one in origins.items() if at[: len(path)] == path and not one.line)
    where = f"{' with '.join(dict.fromkeys(map(str, (origins[keys], *below))))}: " if keys else ""
    return f"{where}{mistake.dotted}: {mistake.message}" if mistake.path else f"{where}{mistake.message}"
