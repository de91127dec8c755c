"""Settings: YAML 1.2, one extends, overrides, and every mistake at once with its place."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from medmvl.core.config import ConfigError, Strict, dump_yaml, load, read_yaml


class Rule(Strict):
    mode: Literal["frozen", "full"]
    lr: float = 0.0


class Stage(Strict):
    name: str
    epochs: float = 1
    tune: dict[str, Rule] = Field(default_factory=dict)
    sizes: Annotated[tuple[float, ...], Field(strict=False)] = ()


class Settings(Strict):
    llm: str | None = None
    stages: list[Stage] = Field(default_factory=list)
    run: Rule | None = None


BASE = """\
llm: x
stages:
  - {name: a, epochs: 1e-3, sizes: [1, 2]}
  - name: b
    tune:
      image.connector: {mode: full, lr: 1e-3}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nllm: no\nrun: {mode: full}\n")
    return tmp_path


def mistakes(source: object, overrides: tuple[str, ...] = (), shipped: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(Settings, source, overrides, shipped)  # type: ignore[arg-type]
    assert len(caught.value.lines) == str(caught.value).count("\n")
    return str(caught.value)


def test_a_mapping_may_hold_paths_and_tuples(tmp_path: Path) -> None:
    given: dict[str, object] = {"llm": tmp_path / "llm", "stages": ({"name": "a", "sizes": (1.0, 2.0)},)}
    settings = load(Settings, given)
    assert settings.llm == str(tmp_path / "llm")
    assert settings.stages[0].sizes == (1.0, 2.0)
    assert given["llm"] == tmp_path / "llm"  # not changed in place


def test_yaml_1_2(folder: Path) -> None:
    settings = load(Settings, folder / "child.yaml")
    assert settings.llm == "no"
    assert settings.stages[0].epochs == 1e-3
    assert settings.stages[1].tune["image.connector"].lr == 1e-3
    with pytest.raises(ValidationError):
        settings.llm = "y"  # type: ignore[misc]


@pytest.mark.parametrize(("text", "plain"), [("1e-3", "0.001"), ("1e-5", "1.0e-05"), ("2.5e-5", "2.5e-05"), ("x", "")])
def test_numbers_that_came_as_text(text: str, plain: str) -> None:
    """PyYAML reads 1e-3 as text."""
    told = mistakes({"run": {"mode": "full", "lr": text}})
    assert f"run.lr: input should be a valid number; got {text!r} (str)" in told
    assert (f"; write {plain}, or let medmvl read the file itself" in told) is bool(plain)


def test_extends_by_name_and_merging(folder: Path) -> None:
    (folder / "third.yaml").write_text("extends: child\nrun: {lr: 0.5}\nstages: []\n")
    settings = load(Settings, "third", shipped=folder)
    assert settings.run == Rule(mode="full", lr=0.5)
    assert settings.stages == []


def test_a_mapping_is_not_changed_and_may_extend(folder: Path) -> None:
    given = {"extends": "base", "run": {"mode": "full"}}
    settings = load(Settings, given, ["run.lr=1"], folder)
    assert settings.llm == "x" and settings.run == Rule(mode="full", lr=1.0)
    assert given == {"extends": "base", "run": {"mode": "full"}}


def test_overrides(folder: Path) -> None:
    overrides = [
        "stages.b.epochs=3",
        "stages.1.tune.image.connector.lr=1e-4",
        "stages[1].tune.image.encoder={mode: full}",
        "stages.a.tune.image.encoder.mode=full",
        "llm=null",
        "run.mode=frozen",
    ]
    settings = load(Settings, folder / "base.yaml", overrides)
    assert settings.stages[1].epochs == 3
    assert settings.stages[1].tune == {
        "image.connector": Rule(mode="full", lr=1e-4),
        "image.encoder": Rule(mode="full"),
    }
    assert settings.stages[0].tune == {"image.encoder": Rule(mode="full")}
    assert settings.llm is None and settings.run == Rule(mode="frozen")


def test_all_mistakes_at_once_with_their_places(folder: Path) -> None:
    (folder / "bad.yaml").write_text(
        "extends: base\nllm: 3\nllm: y\nstgaes: []\nrun:\n  mode: ful\n  lr: '1'\nstages:\n  - epochs: x\n"
    )
    overrides = ("run.lrr=1", "stages.c.epochs=1", "llm.a=2", "nonsense", "run.mode=[", "stages.7.name=x")
    message = mistakes("bad", overrides, folder)
    bad = folder / "bad.yaml"
    for said in (
        f"{bad}, line 3: llm: key stands twice (first on line 2)",
        f"{bad}, line 2: llm: input should be a valid string; got 3 (int)",
        f"{bad}, line 4: stgaes: unknown key; did you mean 'stages'",
        f"{bad}, line 6: run.mode: got 'ful'; did you mean 'full'? Choices: frozen, full",
        f"{bad}, line 7: run.lr: input should be a valid number; got '1' (str); write 1, or "
        "let medmvl read the file itself (PyYAML takes 1e-3 for text)",
        f"{bad}, line 9: stages[0].name: required key is missing",
        f"{bad}, line 9: stages[0].epochs: input should be a valid number; got 'x' (str)",
        "override 'run.lrr=1': run.lrr: unknown key; did you mean 'lr'",
        "override 'stages.c.epochs=1': stages has no item 'c'; Items: 0",
        "override 'llm.a=2': llm is 3, it has no keys below",
        "override 'nonsense': must look like a.b=value",
        "override 'run.mode=[': the value is no valid YAML",
        "override 'stages.7.name=x': stages has no item '7'",
    ):
        assert said in message


def test_mistake_in_a_base_names_the_base(folder: Path) -> None:
    (folder / "base.yaml").write_text("llm: x\nrun: {mode: full, lrr: 1}\n")
    assert f"{folder / 'base.yaml'}, line 2: run.lrr: unknown key; did you mean 'lr'" in mistakes(folder / "child.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1,\nb: }", "line 2, column 4: no valid YAML"),
        ("- 1", "must hold a mapping"),
        ("", "empty"),
        ("a: *b", "no valid YAML"),
        ("extends: [a]", "extends: name one file"),
        ("extends: bsae", "did you mean 'base'"),
        ("extends: self", "goes in a circle"),
        ("\x00", "no valid YAML"),
    ],
)
def test_files_that_are_no_settings(folder: Path, text: str, said: str) -> None:
    (folder / "self.yaml").write_text(text)
    assert said in mistakes("self", shipped=folder)


def test_unknown_name(folder: Path) -> None:
    assert "did you mean 'child'? Shipped names: base, child" in mistakes("chidl", shipped=folder)
    assert "no file" in mistakes(folder / "nothing.yaml")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in mistakes(tmp_path / "b.yaml")


def test_read_yaml_gives_lines(folder: Path) -> None:
    data, lines = read_yaml(folder / "base.yaml")
    assert data["stages"][1]["name"] == "b"
    assert lines["stages", 1, "tune", "image.connector", "lr"] == 6
    (folder / "twice.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigError, match="stands twice"):
        read_yaml(folder / "twice.yaml")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcé:# '", max_size=5), inner, max_size=3),
    max_leaves=8,
)


@example(data={"a": "\x85", "b": "one\u2028two", "c": " \u2029 "})
@given(data=st.dictionaries(st.text("ab1.-", min_size=1, max_size=6), values, min_size=1, max_size=4))
def test_dump_is_read_back(data: dict, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "dump.yaml"
    path.write_text(dump_yaml(data), encoding="utf-8")
    assert read_yaml(path)[0] == data
