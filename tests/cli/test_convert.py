"""`medmvl data convert` explains itself: the list of data sets, the page of one, and every mistake."""

import json
from pathlib import Path

import pytest

from medmvl.cli.main import main
from medmvl.data.adapters.table import ADAPTERS


def test_without_a_name_all_data_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["data", "convert"], ["list", "datasets"]):
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert all(f"\n  {name} " in shown for name in ADAPTERS)


def test_a_name_alone_prints_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "convert", "slake"]) == 0
    shown = capsys.readouterr().out
    for said in ("expected:", "tasks:", "splits:", "options:", "licence:", "access:", "vqa", "validate"):
        assert said in shown
    assert main(["data", "convert", "mimic_cxr"]) == 0
    assert "must not leave the machine" in capsys.readouterr().out


def test_mistakes_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["slak"], "did you mean 'slake'"),
        (["slake", str(tmp_path)], "name the folder of the new store"),
        (["slake", str(tmp_path), f"{tmp_path}/out", "--split", "vaild"], "did you mean 'val'"),
        (["slake", str(tmp_path), f"{tmp_path}/out", "--option", "language"], "must look like key=value"),
        (["slake", str(tmp_path), f"{tmp_path}/out", "--embed"], "add --form parquet"),
        (["slake", f"{tmp_path}/none", f"{tmp_path}/out"], "there is no such folder"),
        (["slake", str(tmp_path), f"{tmp_path}/out"], "is missing"),
    ):
        assert main(["data", "convert", *arguments]) == 2, arguments
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_missing_media_are_told_with_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"from": "human", "value": "<image> Q"}, {"from": "gpt", "value": "A"}]
    lines = [json.dumps({"id": str(n), "image": f"{n % 2}.png", "conversations": turns}) for n in range(4)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "0.png").write_bytes(b"0")
    assert main(["data", "convert", "llava", f"{tmp_path}/train.jsonl", f"{tmp_path}/out/mine"]) == 0
    told = capsys.readouterr().err
    assert "the media of 2 samples are missing" in told and f"{tmp_path}/1.png" in told and "0.png" not in told
