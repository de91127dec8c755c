"""Lookup tables: names, dotted paths, hints."""

import math

import pytest

from medmvl.core.lookup import LookupNameError, nearest, resolve

TABLE = {"root": "math:sqrt", "gone": "no_such_module_here:x"}


def test_names_and_dotted_paths() -> None:
    assert resolve(TABLE, "root", "test") is math.sqrt
    assert resolve(TABLE, "math:floor", "test") is math.floor


@pytest.mark.parametrize("name", ["rot", "ROOT", "math", "math:sqroot", "no_such_module_here:x", "math:sqrt.x", ":"])
def test_wrong_names(name: str) -> None:
    with pytest.raises(LookupNameError) as caught:
        resolve(TABLE, name, "function of the test")
    assert "function of the test" in str(caught.value) and repr(name) in str(caught.value)


def test_wrong_name_gets_a_hint_and_all_names() -> None:
    with pytest.raises(LookupNameError, match=r"did you mean 'root'\? Choices: gone, root"):
        resolve(TABLE, "rot", "x")


def test_a_broken_row_is_our_fault_not_the_users() -> None:
    with pytest.raises(ModuleNotFoundError):
        resolve(TABLE, "gone", "x")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("conector", "connector"), ("Image-Encoder", "image_encoder"), ("siglip", "siglip_base"), ("zzz", None)],
)
def test_nearest(given: str, meant: str | None) -> None:
    assert nearest(given, ["connector", "image_encoder", "siglip_base"]) == meant
