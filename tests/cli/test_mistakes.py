"""What the commands say about mistakes in samples and recipes, and that the rest goes on."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest

from medmvl.bundle import Bundle
from medmvl.cli.main import main
from medmvl.core.config import load
from medmvl.train.recipe import Recipe


@pytest.fixture(scope="module")
def bundle(work: Path) -> Path:
    model = load(Recipe, work / "recipe.yaml").model
    return Bundle.build(model, max_tokens=256).save(work / "untrained")


@pytest.fixture
def broken(work: Path, tmp_path: Path) -> Path:
    """Return an annotation file of four samples: a path that leaves, no placeholder, and two that are fine."""
    rows = json.loads((work / "annotations.json").read_text())[:4]
    rows[0]["image"] = ["../0.png"]
    rows[2]["conversations"][0]["value"] = "Which colour?"
    file = tmp_path / "mine" / "train.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("verb", ["check", "demo"])
def test_help_shows_examples_as_lines(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "\\b" not in shown and len(re.findall(rf"^  medmvl {verb} ", shown, re.MULTILINE)) == 2


def test_predict_answers_what_is_right_in_a_broken_file(work: Path, bundle: Path, broken: Path) -> None:
    out = broken.with_name("answers.jsonl")
    command = ["predict", str(bundle), str(broken), "--root", f"{work}/images", "--out", str(out)]
    assert main([*command, "--max-new-tokens", "2", "--device", "cpu"]) == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["s0", "s1", "s2", "s3"]
    assert ["error" in row for row in rows] == [True, False, True, False]
    assert "leaves the given folders" in rows[0]["error"] and "one path per placeholder" in rows[2]["error"]


def test_convert_tells_every_wrong_sample_and_writes_the_others(
    work: Path, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "store"
    option = f"media_root={work}/images"
    assert main(["data", "convert", "annotations", str(broken), str(out), "--option", option]) == 0
    printed = capsys.readouterr()
    assert "2 rows were refused" in printed.err and "'s0'" in printed.err and "'s2'" in printed.err
    assert [json.loads(line)["id"] for line in (out / "train.jsonl").read_text().splitlines()] == ["s1", "s3"]
    assert [json.loads(line)["id"] for line in (out / "refused.jsonl").read_text().splitlines()] == ["s0", "s2"]
    assert f"run.data_roots='[{tmp_path}, {work}/images]'" in printed.out


def test_inspect_shows_a_store_with_broken_samples(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "inspect", str(broken.parent), "--out", f"{tmp_path}/sheet.png"]) == 0
    shown = capsys.readouterr().out
    assert "4 samples, no manifest" in shown and "colour: 4" in shown
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_check_counts_text_with_the_bundle_it_starts_from(
    work: Path, bundle: Path, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 3):
        shutil.copy(work / "images" / f"{number}.png", broken.parent)
    rows = broken.read_text().splitlines()
    broken.write_text(f"{rows[1]}\n{rows[3]}\n")
    settings = [f"run.data_roots=[{broken.parent.parent}]", "stages.only.data=[{source: mine}]"]
    assert main(["check", f"{work}/recipe.yaml", "model=null", f"init_from={bundle}", *settings]) == 0
    assert "a sample has" in capsys.readouterr().out


def test_missing_data_is_told_at_once_with_where_it_is_from(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = "stages.only.data=[{source: slake}, {source: medqa}, {source: brian_atlas}]"
    assert main(["train", f"{work}/recipe.yaml", data, f"run.output={tmp_path}/run"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 3 and "BoKelvin/SLAKE" in told and "jind11/MedQA" in told
    assert "source 'brian_atlas': no such store" in told and "medmvl data build brain_atlas" in told


def test_chat_goes_on_without_a_broken_picture(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (picture := tmp_path / "cut.png").write_bytes(b"no picture")
    monkeypatch.setattr("sys.stdin", io.StringIO("Which colour?\nWhich now?\n"))
    assert main(["chat", str(bundle), "--image", str(picture), "--max-new-tokens", "2", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(f"{picture}: is ") == 1, "the second question is about no picture"
    assert "you: Which colour?\n" in shown
