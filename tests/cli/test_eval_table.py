"""`medmvl eval table`: evaluations and published numbers on the screen, in files and in pipes."""

import csv
import io
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from medmvl.cli.commands.eval_table import table


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Return the folders of two evaluations of SLAKE."""
    folders = []
    for name, value in (("ours", 0.7), ("theirs", 0.6)):
        scored = {"bleu1_sentence": {"value": value, "low": value - 0.1, "high": value + 0.1}}
        entry = {"n": 20, "version": "1.0", "title": "SLAKE", "family": "open", "primary": "bleu1_sentence",
                 "metrics": scored, "controls": {"blank_image": scored}, "unavailable": {}}  # fmt: skip
        scores = {"provenance": {"model": name, "data_hash": "1"}, "tasks": {"slake/vqa": entry}, "excluded": []}
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps(scores))
        folders.append(str(tmp_path / name))
    return folders


def called(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(table)
    return CliRunner().invoke(app, list(arguments))


def test_on_the_screen(runs: list[str]) -> None:
    said = called(*runs).stdout
    assert "SLAKE" in said and "70.0" in said and "[50.0, 70.0]" in said
    assert "ours, blank" in called(*runs, "--controls").stdout
    said = called(f"us={runs[0]}", "--suite", "medm_vl_2d", "--reported").stdout
    assert "us" in said and "84.45 †" in said and "81.66 ‡" in said


def test_in_pipes_and_files(runs: list[str], tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(called(*runs, "--format", "csv").stdout)))
    assert (rows[0]["task"], rows[0]["ours"], rows[0]["theirs high"]) == ("slake/vqa", "70", "70")
    assert called(*runs, "--format", "md").stdout.count("| SLAKE |") == 1
    for suffix, sign in (("tex", r"\toprule"), ("md", "| --- |"), ("csv", "task,kind")):
        out = tmp_path / f"deep/table.{suffix}"
        assert called(*runs, "--out", str(out)).stdout == f"table: {out}\n"
        assert sign in out.read_text("utf-8")
    out = tmp_path / "table.txt"
    assert called(*runs, "--out", str(out), "--format", "latex").exit_code == 0
    assert r"\bottomrule" in out.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--reported"], "add --suite. Suites: m3d_bench, medm_vl_2d"),
        ([], "no evaluation given"),
        (["--suite", "medm_vl_2d"], "no evaluation given"),
        (["nowhere"], "no scores of an evaluation can be read"),
        (["--suite", "m3d", "--reported"], "did you mean 'm3d_bench'"),
        (["--suite", "m3d_bench", "--reported", "--out", "t.xls"], "no table is written as 'xls'"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], told: str) -> None:
    error = called(*arguments).exception
    assert isinstance(error, ValueError) and told in str(error)
