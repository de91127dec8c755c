"""`medmvl list` names what ships."""

import json

import pytest

from medmvl.cli.main import main
from medmvl.core import shipped
from medmvl.model.config import CONNECTORS, ENCODERS


def listed(kind: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["list", kind]) == 0
    return capsys.readouterr().out


def test_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out.split()
    for name in (*shipped.names("recipes", ".yaml"), *shipped.names("processing/templates", ".jinja"), *CONNECTORS,
                 *ENCODERS, *shipped.names("eval/tasks", ".yaml")):  # fmt: skip
        assert name in shown
    assert "_two_stage" not in shown


def test_recipes_are_described(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed("recipes", capsys).splitlines()[1:-1]
    assert all(len(row.split()) > 3 for row in rows)


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(listed("schema", capsys))["title"] == "Recipe"
