"""The command line: fast help, verbs that teach, mistakes as short messages."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from medmvl.cli.main import VERBS, main

COUNT = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], capture_output=True, check=False); " \
    "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"  # fmt: skip


def cpu_seconds(*arguments: str) -> float:
    done = subprocess.run([sys.executable, "-c", COUNT, sys.executable, *arguments], capture_output=True, text=True)
    return float(done.stdout)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_takes_a_fifth_of_importing_torch() -> None:
    assert cpu_seconds("-m", "medmvl", "--help") <= cpu_seconds("-c", "import torch") / 5
    assert cpu_seconds("-m", "medmvl", "train", "--help") <= cpu_seconds("-c", "import torch") / 5


def test_the_table_of_verbs_imports_nothing() -> None:
    code = (
        "import sys, medmvl.cli.main as m; m.main(['--help']); "
        "print(sorted({'typer', 'rich', 'pydantic', 'ruamel', 'numpy'} & set(sys.modules)))"
    )
    assert run(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} ", shown, re.MULTILINE) for verb in VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("medmvl ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"medmvl {verb}" in capsys.readouterr().out.split("Usage:")[1].split("\n", 1)[1]
    assert hasattr(import_module(f"medmvl.cli.commands.{verb}"), "app")


@pytest.mark.parametrize("words", [["data", "audit"], ["data", "deid"]])
def test_ctrl_c_is_told(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "a").write_text("x")
    (tmp_path / "train.jsonl").write_text("{}")
    monkeypatch.setattr("medmvl.data.audit.run.audit", pressed)
    monkeypatch.setattr("medmvl.imaging.deid_files.files_of", pressed)
    monkeypatch.setattr("medmvl.data.store.find_source", pressed)
    given = {"audit": [str(tmp_path)], "deid": [str(tmp_path / "a"), str(tmp_path / "out")]}[words[-1]]
    assert main([*words, *given]) == 130
    assert capsys.readouterr().err.strip().splitlines() == ["medmvl data: stopped by Ctrl-C"]


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "did you mean 'train'? Verbs: chat, check" in capsys.readouterr().err


def test_unknown_option_and_missing_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "medm_vl_2d", "--resum"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["check"]) == 2


@pytest.mark.parametrize("verb", ["train", "check"])
def test_typos_in_a_recipe_are_answered_at_once_without_torch(verb: str) -> None:
    typos = ["run.sed=1", "run.strategy=zreo3", "stages.align.tune.imagee.connector.lr=1", "model.towers.image.layr=2"]
    code = (
        "import sys\nfrom medmvl.cli.main import main\n"
        f"code = main({[verb, 'medm_vl_2d', *typos]!r})\n"
        "print(code, sorted({'torch', 'transformers', 'accelerate', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "2 []"
    assert "Traceback" not in done.stderr and done.stderr.startswith(f"medmvl {verb}: medm_vl_2d: ")
    for meant in ("'seed'", "'zero3'", "'image.connector'", "'layer'"):
        assert f"did you mean {meant}" in done.stderr


def test_errors_are_messages_and_debug_shows_where() -> None:
    command = [sys.executable, "-m", "medmvl", "list", "recips"]
    short = subprocess.run(command, capture_output=True, text=True)
    assert (short.returncode, short.stdout) == (2, "")
    assert short.stderr == "medmvl list: unknown kind 'recips'; did you mean 'recipes'? " \
        "Choices: connectors, datasets, encoders, recipes, schema, suites, tasks, templates\n"  # fmt: skip
    long = subprocess.run([*command, "--debug"], capture_output=True, text=True)
    assert long.returncode != 0 and "Traceback" in long.stderr


def test_the_installed_command() -> None:
    script = os.path.join(os.path.dirname(sys.executable), "medmvl")
    if not os.path.exists(script):
        pytest.skip("medmvl is on the path, not installed")
    assert "usage: medmvl" in subprocess.run([script], capture_output=True, text=True, check=True).stdout
