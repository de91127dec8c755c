"""`medmvl data build`: both halves of the benchmark from the command line, and a look at the volumes."""

from pathlib import Path

import pytest

from medmvl.cli.main import main
from medmvl.data.store import SampleStore


def test_pictures_and_volumes_of_the_same_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("brain_atlas", "brain_atlas_3d"):
        assert main(["data", "build", name, f"{tmp_path}/{name}", "--patients", "20", "--seed", "5"]) == 0
        shown = capsys.readouterr().out
        assert f"{name}/report" in shown and "CC BY-NC" in shown
    flat, whole = (
        {
            split: {sample.patient for sample in SampleStore(tmp_path / name, split)}
            for split in ("train", "val", "test")
        }
        for name in ("brain_atlas", "brain_atlas_3d")
    )
    assert flat == whole and len(whole["train"]) == 16
    sheet = tmp_path / "sheet.png"
    assert (
        main(["data", "inspect", f"{tmp_path}/brain_atlas_3d", "--split", "test", "--out", str(sheet), "-n", "3"]) == 0
    )
    assert sheet.stat().st_size > 50_000


def test_too_few_patients_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "build", "brain_atlas_3d", f"{tmp_path}/x", "--patients", "3"]) == 2
    assert "patients=3 is out of range; choose 20 to" in capsys.readouterr().err
