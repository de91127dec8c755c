"""Options of a class: told from its signature and docstring, every misfit in one answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from medmvl.core.options import REQUIRED, check_options, options_of, summary


class Lens:
    """Looks at things.

    More of it.

    Args:
        grid: of what it looks at.
        near, far: how close it comes,
            and how far: both in mm.
        name: what it is called.

    Raises:
        ValueError: never.
    """

    def __init__(
        self,
        grid: object,
        near: int,
        far: float = 2.0,
        sizes: int | Sequence[int] = 2,
        kind: Literal["round", "square"] = "round",
        name: str | None = None,
        rest: Mapping[str, Any] | None = None,
        sharp: bool = False,
    ) -> None: ...


def test_options_are_those_of_the_signature_with_the_docstrings_words() -> None:
    found = {one.name: one for one in options_of(Lens, given=("grid",))}
    assert list(found) == ["near", "far", "sizes", "kind", "name", "rest", "sharp"]
    assert (found["near"].default, found["far"].default) == (REQUIRED, 2.0)
    assert found["near"].about == found["far"].about == "how close it comes, and how far: both in mm."
    assert (found["name"].about, found["sharp"].about) == ("what it is called.", "")
    assert summary(Lens) == "Looks at things."


@pytest.mark.parametrize(
    "options",
    [
        {"near": 1},
        {"near": 1, "far": 3, "sizes": [1, 2], "kind": "square", "name": Path("a"), "rest": {"a": 1}, "sharp": True},
        {"near": 1, "sizes": (1, 2), "name": None},
    ],
)
def test_options_that_fit(options: dict[str, Any]) -> None:
    check_options(Lens, options, given=("grid",))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "the option 'near' is required"),
        ({"near": "1"}, "the option 'near' must be a whole number, got '1' (str)"),
        ({"near": True}, "the option 'near' must be a whole number, got True (bool)"),
        ({"near": 1, "far": "2"}, "the option 'far' must be a number, got '2' (str)"),
        ({"near": 1, "sizes": [1, "x"]}, "must be a whole number or a list of whole numbers, got [1, 'x'] (list)"),
        (
            {"near": 1, "kind": "rund"},
            "the option 'kind': got 'rund' (str); did you mean 'round'? Choices: round, square",
        ),
        ({"near": 1, "name": 3}, "the option 'name' must be text or null, got 3 (int)"),
        ({"near": 1, "rest": []}, "the option 'rest' must be a mapping or null, got [] (list)"),
        ({"near": 1, "sharp": 1}, "the option 'sharp' must be true or false, got 1 (int)"),
        ({"near": 1, "fra": 1.0}, "unknown option 'fra'; did you mean 'far'? Options: far, kind, name, near, rest"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as told:
        check_options(Lens, options, given=("grid",))
    assert said in str(told.value)


def test_all_mistakes_at_once() -> None:
    with pytest.raises(ValueError) as told:
        check_options(Lens, {"far": "x", "nera": 1}, given=("grid",))
    first, *lines = str(told.value).splitlines()
    starts = ("the option 'near' is required", "the option 'far' must be", "unknown option 'nera'")
    assert first == "3 mistakes"
    assert [line.strip().startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * 3


def test_classes_that_take_any_keyword_are_asked_for_the_others() -> None:
    def build(depth: int, **others: object) -> None: ...

    check_options(build, {"depth": 1, "colour": "red"}, given=())
    with pytest.raises(ValueError, match="'depth' must be a whole number"):
        check_options(build, {"depth": "1", "colour": "red"}, given=())
