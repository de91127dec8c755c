"""`medmvl data audit`: what it prints, writes and returns, and a recipe's own count of tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import audit_store
import dicom_files
from audit_store import append, row, rows, scan, write
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
    assert finding["examples"][0]["row"] == 25 and "max_tokens 256 in stage only" in finding["examples"][0]["detail"]
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


NAMES = ("mustermann", "erika", "778899")


@pytest.fixture
def identifying(tmp_path: Path) -> Path:
    """A store that names a patient in every place where data can, with a fault in each, so that each is told."""
    folder = tmp_path / "ERIKA MUSTERMANN"
    (folder / "images").mkdir(parents=True)
    made = rows(folder)

    def add(split: str, number: int, about: str, **changes: object) -> dict:
        one = row(folder, split, number, **changes) | {"id": f"ERIKA-MRN778899-{about}"}
        path = f"images/MUSTERMANN_ERIKA_{about}.png"
        (folder / one["messages"][0]["content"][0]["path"]).rename(folder / path)
        one["messages"][0]["content"][0]["path"] = path
        one["meta"] |= {"patient": "MUSTERMANN778899", "study": f"ERIKA{about}", "note": "ERIKA"}
        one["meta"] |= {"modality": "ERIKA"} if number < 53 else {}
        made.append(one)
        return one

    same = audit_store.seed_of("train", 5)
    add("train", 50, "missing")
    add("train", 51, "corrupt")
    add("test", 52, "leak", pixels=scan(same))
    add("val", 53, "near", pixels=np.asarray(Image.fromarray(scan(same)).resize((90, 90))))
    add("test", 54, "text", question="Does Frau Mustermann have it?", answer="Erika does")
    add("train", 55, "black", pixels=np.zeros((64, 64), np.uint8))
    for about in ("one", "two"):
        one = add("train", 56, "same", question="Is ERIKA well?", answer=f"MUSTERMANN {about}") | {
            "id": f"ERIKA {about}"
        }
        made[-1] = one
    made.append(made[-1] | {"id": "ERIKA again"})
    add("val", 57, "split", meta={"boxes": [{"coords": [0, 0, 900, 900], "label": "ERIKA"}]})
    add("train", 58, "words", task="MUSTERMANN/vqa", source="ERIKA", meta={"answer_type": "ERIKA"})
    add("train", 59, "nothing", answer=" ")
    header = row(folder, "train", 61) | {"id": "ERIKA header"}
    data = dicom_files.dataset(scan(99).astype(np.uint16), PatientComments="MUSTERMANN", BurnedInAnnotation="YES")
    data.PatientName, data.PatientID = "MUSTERMANN^ERIKA", "778899"
    dicom_files.save(folder / "images" / "ERIKA.dcm", data)
    header["messages"][0]["content"][0]["path"] = "images/ERIKA.dcm"
    fields = row(folder, "train", 62) | {"id": "ERIKA fields"}
    words = PngInfo()
    words.add_text("MUSTERMANN name", "MUSTERMANN^ERIKA")
    Image.fromarray(scan(62)).save(folder / "images" / "train62.png", pnginfo=words)
    text_only = [row(folder, split, 63, question="Who is ERIKA?", answer="MUSTERMANN") for split in ("train", "test")]
    for one in text_only:
        one["messages"][0]["content"] = one["messages"][0]["content"][1:]
        one["id"] += "ERIKA"
    official = row(folder, "train", 64) | {"id": "test/ERIKA"}
    write(folder, [*made, header, fields, official, *text_only])
    (folder / "images" / "MUSTERMANN_ERIKA_missing.png").unlink()
    (folder / "images" / "MUSTERMANN_ERIKA_corrupt.png").write_bytes(b"ERIKA")
    append(folder, "test", '{"id": "ERIKA", MUSTERMANN', row(folder, "train", 65) | {"id": "ERIKA moved"}, {
        "id": "ERIKA bad", "MUSTERMANN": 1, "messages": [{"role": "MUSTERMANN", "content": "ERIKA"}]}, {
        "id": "ERIKA out", "messages": [{"role": "user", "content": [{"type": "image", "path": "../ERIKA.png"}]}]},
    )  # fmt: skip
    (folder / "manifest.json").unlink()
    (folder / "MUSTERMANN.jsonl").write_text(json.dumps(row(folder, "ERIKA", 66)) + "\n")
    (folder / "test778899.jsonl").write_text("MUSTERMANN\n")
    return folder


def _said(folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    printed = capfd.readouterr()
    return (printed.out + printed.err + "".join(path.read_text() for path in folder.iterdir())).lower()


def test_nothing_names_a_patient(
    identifying: Path, work: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, out = _recipe(work, tmp_path, "    augmentation: {mirror: true}\n"), tmp_path / "out"
    recipe.write_text(recipe.read_text().replace("source: films", f"source: {identifying}"))
    capfd.readouterr()
    command = ["data", "audit", str(identifying), "--recipe", str(recipe), "--out", str(out), "--names", "none"]
    assert main(command) == 0
    told = _said(out, capfd)
    assert {kind for kind in _kinds(out)} >= {
        "missing", "corrupt", "broken_row", "broken_split", "leak_patient", "leak_file", "leak_near", "leak_text",
        "split_field", "split_official", "identifier_text", "identifier_dicom", "identifier_metadata", "conflict",
        "identifier_burned_in", "duplicate", "blank", "box_outside", "empty_answer",
    }  # fmt: skip
    assert [told[max(0, told.index(name) - 99) :][:150] for name in NAMES if name in told] == []
    assert "row 25, medium 1" in told and "(rare answers)" in told and "store 1" in told


def test_names_on_request(identifying: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["data", "audit", str(identifying), "--out", str(out), "--names", "all"]) == 0
    told = _said(out, capfd)
    for shown in ("erika-mrn778899-missing", "images/mustermann_erika_missing.png", "is erika well?", "mustermann two"):
        assert shown in told, shown
    assert "which may name patients: keep it where the data may be" in told


def test_ids_and_paths_are_shown_and_no_texts(
    identifying: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["data", "audit", str(identifying), "--out", str(out)]) == 0
    told = _said(out, capfd)
    assert "images/mustermann_erika_missing.png" in told and "row 25, medium 1" in told
    for hidden in (
        "is erika well?",
        "mustermann two",
        "frau mustermann",
        "mustermann^erika",
        "who is erika",
        "erika does",
    ):
        assert hidden not in told, hidden
    assert "mrn778899" not in told  # an identifier by its pattern, in an id too


def test_help_says_what_names_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "audit", "--help"]) == 0
    assert "--names" in capsys.readouterr().out
