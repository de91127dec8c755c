"""Options of a class that a name in a table stands for: told from its signature, and checked against it."""

import inspect
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from medmvl.core.explain import shorten
from medmvl.core.lookup import choices_text

REQUIRED = inspect.Parameter.empty
"""Default of an option that has none."""
_ENTRY = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")
_SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword of a constructor.

    Attributes:
        name: as recipes write it.
        default: its value where none is given; REQUIRED for none.
        annotation: its type; Any where none is stated.
        about: what the docstring says of it; "" for nothing.
    """

    name: str
    default: Any
    annotation: Any
    about: str


def options_of(cls: Callable[..., Any], given: Collection[str]) -> list[Option]:
    """Return the options of a class, in the order of its signature.

    Args:
        cls: a class, or a function that builds one.
        given: parameters that are no options: whoever builds it provides them.
    """
    parameters = inspect.signature(cls).parameters
    hints, abouts = _hints(cls), _abouts(cls)
    return [
        Option(name, one.default, hints.get(name, Any), abouts.get(name, ""))
        for name, one in parameters.items()
        if name not in given and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]


def summary(cls: Callable[..., Any]) -> str:
    """Return the first sentence of a docstring; "" without one."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def check_options(
    cls: Callable[..., Any], options: Mapping[str, Any], given: Collection[str], known_good: Collection[str] = ()
) -> None:
    """Refuse options that a class does not take, lacks of what it needs, and values of another type.

    Args:
        cls: a class, or a function that builds one; one that takes any keyword is asked for the others only.
        options: as given.
        given: as for `options_of`.
        known_good: options whose type was checked before.

    Raises:
        ValueError: all mistakes, one a line when there are several.
    """
    known = {one.name: one for one in options_of(cls, given)}
    wrong = [
        f"the option {name!r} is required"
        for name, one in known.items()
        if one.default is REQUIRED and name not in options
    ]
    takes_any = any(one.kind is one.VAR_KEYWORD for one in inspect.signature(cls).parameters.values())
    for name, value in options.items():
        if name not in known:
            wrong += [] if takes_any else [f"unknown option {name!r}; {choices_text(name, known, 'options')}"]
        elif name not in known_good and not _fits(value, known[name].annotation):
            wrong.append(_misfit(value, known[name]))
    if wrong:
        raise ValueError(wrong[0] if len(wrong) == 1 else "\n  ".join([f"{len(wrong)} mistakes", *wrong]))


def _misfit(value: Any, option: Option) -> str:
    given = f"got {shorten(value)} ({type(value).__name__})"
    if get_origin(option.annotation) is Literal:
        return f"the option {option.name!r}: {given}; {choices_text(str(value), map(str, get_args(option.annotation)))}"
    return f"the option {option.name!r} must be {type_text(option.annotation)}, {given}"


def type_text(annotation: Any) -> str:
    """Return a type in words: "a list of whole numbers, or null"."""
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(type_text, arguments))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list of {_plural(type_text(arguments[0]))}"
    return str(getattr(annotation, "__name__", annotation))


def _plural(text: str) -> str:
    words = text.removeprefix("a ")
    return f"{words}s" if words.endswith("number") else f"items, each {text}"


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of a type, without conversion; what YAML writes as lists and text may be tuples and paths."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
    from pydantic_core import PydanticSerializationError, to_json

    try:
        kind = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except PydanticUserError:
        return True  # a type of the user's own that says nothing
    try:
        kind.validate_python(value)
    except ValidationError:
        try:
            kind.validate_json(to_json(value))
        except (ValidationError, PydanticSerializationError):
            return False
    return True


def _hints(cls: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(cls.__init__ if isinstance(cls, type) else cls)
    except (NameError, TypeError):  # names that are imported for type checkers only
        return {}


def _abouts(cls: Callable[..., Any]) -> dict[str, str]:
    """Return what the section `Args:` of a docstring says, by name."""
    _, found, section = (inspect.getdoc(cls) or "").partition("\nArgs:\n")
    abouts: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines() if found else ():
        if line and not line.startswith("    "):
            break
        if entry := _ENTRY.fullmatch(line):
            names = entry[1].split(", ")
            abouts |= dict.fromkeys(names, entry[2])
        else:
            abouts |= {name: f"{abouts[name]} {line.strip()}".strip() for name in names}
    return abouts
