"""`medmvl data audit`: what it prints, writes and returns, and a recipe's own count of tokens."""

import json
from pathlib import Path

import pytest

from audit_store import row, rows, write
from medmvl.cli.main import main


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "films"
    return write(folder, [*rows(folder), row(folder, "test", 50, meta={"patient": "tr3"})])


def _kinds(out: Path) -> dict[str, int]:
    return {one["kind"]: one["count"] for one in json.loads((out / "audit.json").read_text())["findings"]}


def test_a_clean_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write(tmp_path / "films", rows(tmp_path / "films"))
    assert main(["data", "audit", str(store), "--out", str(tmp_path / "out"), "--block", "all"]) == 0
    shown = capsys.readouterr().out
    assert "40 samples: films/test, films/train, films/val" in shown and "nothing was found" in shown
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audit.html", "audit.json"]


@pytest.mark.parametrize(("block", "code"), [([], 0), (["--block", "corrupt,missing"], 0), (["--block", "leak"], 1)])
def test_what_is_marked_blocks(
    leaky: Path, tmp_path: Path, block: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "audit", str(leaky), "--out", str(tmp_path / "out"), *block]) == code
    printed = capsys.readouterr()
    assert "leak_patient" in printed.out and ("nothing blocks; --block error" in printed.out) == (not block)
    assert ("blocked by leak_patient" in printed.err) == bool(code)
    assert _kinds(tmp_path / "out") == {"leak_patient": 1}


def test_mistakes_are_answered(leaky: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "audit", str(leaky), "--block", "leek"]) == 2
    assert "did you mean 'leak'" in capsys.readouterr().err
    assert main(["data", "audit"]) == 2
    assert "name stores to look at, or a recipe" in capsys.readouterr().err
    assert main(["data", "audit", str(leaky / "nowhere")]) == 2
    assert "no such store" in capsys.readouterr().err


def _recipe(work: Path, folder: Path, stage: str = "") -> Path:
    text = (work / "recipe.yaml").read_text().replace(f"{work}/data", f"{folder}/data")
    text = text.replace("source: colours", "source: films")
    path = folder / "recipe.yaml"
    path.write_text(text.replace("    steps: 3\n", f"    steps: 3\n{stage}"))
    return path


def test_samples_longer_than_the_recipe_allows(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data" / "films"
    long = row(folder, "train", 50, answer="Nothing to see here. " * 40, meta={"answer_type": "open"})
    write(folder, [*rows(folder), long, row(folder, "test", 51, answer="Nothing. " * 99, meta={"answer_type": "open"})])
    recipe = _recipe(work, tmp_path)
    out = tmp_path / "out"
    assert main(["data", "audit", "--recipe", str(recipe), "--out", str(out), "--block", "too_long"]) == 1
    assert "too_long" in capsys.readouterr().out
    told = json.loads((out / "audit.json").read_text())
    (finding,) = told["findings"]
    assert (finding["kind"], finding["count"]) == ("too_long", 1)  # of the training split alone
    assert finding["examples"][0]["id"] == "tr50" and "max_tokens 256 in stage only" in finding["examples"][0]["detail"]
    (histogram,) = told["lengths"]
    assert histogram["limit"] == 256 and sum(histogram["counts"]) == 25 and histogram["longest"] > 256


def test_a_store_that_the_recipe_does_not_name(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    write(folder, [*rows(folder), row(folder, "val", 50, answer="Nothing. " * 200, meta={"answer_type": "open"})])
    recipe, out = _recipe(work, tmp_path), tmp_path / "out"
    assert main(["data", "audit", str(folder), "--recipe", str(recipe), "--out", str(out)]) == 0
    assert _kinds(out) == {"too_long": 1}
    assert main(["data", "audit", str(folder / "train.jsonl"), "--recipe", str(recipe), "--out", str(out)]) == 0
    assert _kinds(out) == {}
    assert json.loads((out / "audit.json").read_text())["lengths"][0]["limit"] == 256


def test_a_recipe_without_data(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "audit", "--recipe", str(_recipe(work, tmp_path)), "--out", str(tmp_path / "out")]) == 2
    assert "none of its data is here" in capsys.readouterr().err


def test_a_recipe_that_mirrors_sides(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "films"
    write(folder, [*rows(folder), row(folder, "train", 50, question="Is the left lung clear?")])
    for stage, kinds in (("", {}), ("    augmentation: {mirror: true}\n", {"mirrored": 1})):
        recipe = _recipe(work, tmp_path, stage)
        assert main(["data", "audit", "films", "--recipe", str(recipe), "--out", str(tmp_path / "out")]) == 0
        assert _kinds(tmp_path / "out") == kinds


def test_media_in_another_folder(tmp_path: Path) -> None:
    folder = tmp_path / "films"
    write(folder, rows(folder))
    (folder / "images").rename(tmp_path / "images")
    audit_at = ["data", "audit", str(folder), "--out", str(tmp_path / "out")]
    assert main(audit_at) == 0 and _kinds(tmp_path / "out") == {"missing": 40}
    assert main([*audit_at, "--root", str(tmp_path)]) == 0 and _kinds(tmp_path / "out") == {}
