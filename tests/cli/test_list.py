"""`medmvl list` names what ships."""

import json
import re

import pytest

from medmvl.cli.main import main
from medmvl.core import shipped
from medmvl.core.lookup import resolve
from medmvl.core.options import REQUIRED, options_of, type_text
from medmvl.eval.suite import suite_names
from medmvl.eval.task import group_names
from medmvl.model import connectors
from medmvl.model.config import CONNECTORS, ENCODERS
from medmvl.model.encoders import table


def listed(kind: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["list", kind]) == 0
    return capsys.readouterr().out


def test_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out.split()
    for name in (*shipped.names("recipes", ".yaml"), *shipped.names("processing/templates", ".jinja"), *CONNECTORS,
                 *ENCODERS, *group_names(), *suite_names()):  # fmt: skip
        assert name in shown
    assert "_two_stage" not in shown


def test_tasks_are_listed_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed("tasks", capsys).splitlines()
    assert len(rows) == 1 + len(group_names()) + 1
    assert "  slake           5 tasks: rec, reg, vqa, vqa_closed, vqa_open" in rows
    assert re.search(r"medmnist +19 tasks$", "\n".join(rows), re.MULTILINE)
    assert main(["list", "tasks", "slake"]) == 0
    assert re.search(r"slake/vqa_open +SLAKE, open$", capsys.readouterr().out, re.MULTILINE)
    assert main(["list", "tasks", "slake/vqa_open"]) == 0
    told = capsys.readouterr().out
    assert re.search(r'select +{"answer_type": "open"}$', told, re.MULTILINE) and "token_f1" in told
    assert main(["list", "tasks", "slak"]) == 2
    assert "did you mean 'slake'" in capsys.readouterr().err


def test_suites_are_listed_with_their_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(r"medm_vl_2d +MedM-VL-2D", listed("suites", capsys))
    assert main(["list", "suites", "medm_vl_2d"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"SLAKE VQA +bleu1_sentence of slake/vqa$", told, re.MULTILINE)
    assert re.search(r"published +Med-Flamingo, RadFM, LLaVA-Med, MedM-VL-2D-3B-en$", told, re.MULTILINE)


def test_recipes_are_described(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed("recipes", capsys).splitlines()[1:-1]
    assert all(len(row.split()) > 3 for row in rows)


@pytest.mark.parametrize(
    ("kind", "name"), [*(("connectors", name) for name in CONNECTORS), *(("encoders", name) for name in ENCODERS)]
)
def test_every_option_is_told_with_its_default(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = connectors.GIVEN if kind == "connectors" else table.GIVEN
    options = options_of(resolve(CONNECTORS if kind == "connectors" else ENCODERS, name, ""), given)
    assert main(["list", kind, name]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{name}: ") and ("no options" in shown) is (not options)
    for one in options:
        default = "required" if one.default is REQUIRED else json.dumps(one.default)
        assert one.about, f"the docstring of {name} says nothing of {one.name}"
        assert f"  {one.name}: {type_text(one.annotation)}; {default}\n" in shown
        assert " ".join(one.about.split()) in " ".join(shown.split())


def test_options_of_hub_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "encoders", "google/siglip-base-patch16-256-multilingual"]) == 0
    assert "final_norm: true or false; false" in capsys.readouterr().out
    assert main(["list", "encoders", "GoodBaiBai88/M3D-CLIP"]) == 0
    assert "patch_size: a list of whole numbers; [4, 16, 16]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("connectors", "atention"), "did you mean 'attention'"),
        (("encoders", "vit3"), "did you mean 'vit3d'"),
        (("recipes", "demo_2d"), "Those that do: connectors, encoders, suites, tasks"),
        (("suites", "medm2d"), "did you mean 'medm_vl_2d'"),
    ],
)
def test_names_without_options(asked: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *asked]) == 2
    assert said in capsys.readouterr().err


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(listed("schema", capsys))["title"] == "Recipe"
