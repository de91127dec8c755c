"""Audits: every planted fault is found and told with its sample; a clean set gives nothing."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import audit_store
import dicom_files
from audit_store import row, rows, scan, write
from medmvl.core.schema import Sample, SampleError
from medmvl.data.audit.checks import Tokens, Use
from medmvl.data.audit.duplicates import near_pairs
from medmvl.data.audit.findings import KINDS, Example, Ledger, blocking
from medmvl.data.audit.report import write_audit
from medmvl.data.audit.run import Audit, audit
from medmvl.data.store import write_manifest, write_splits
from medmvl.imaging.read import read_image


def found(*stores: Path, **options: object) -> dict[str, tuple[int, list[Example]]]:
    """Return kind -> (count, examples)."""
    result = audit(list(stores), workers=2, names="all", **options)  # type: ignore[arg-type]
    return {finding.kind: (finding.count, list(finding.examples)) for finding in result.findings}


def planted(folder: Path, *more: dict, drop: int = 0) -> dict[str, tuple[int, list[Example]]]:
    made = rows(folder)
    return found(write(folder, [*made[: len(made) - drop], *more]))


def named(example: Example) -> tuple[str, str]:
    return example.split, example.id


def both(example: Example) -> set[tuple[str, str]]:
    assert example.other is not None
    return {named(example), named(example.other)}


def test_a_clean_set_gives_nothing(tmp_path: Path) -> None:
    result = audit([write(tmp_path, rows(tmp_path))], workers=2)
    assert result.findings == () and result.skipped == () and not result.blocks
    train = next(split for split in result.splits if split["split"] == "train")
    assert (train["samples"], train["media"], train["patients"]) == (24, 24, 24)
    assert train["by"]["task"] == {"films/finding": 24}
    assert train["answers"]["films/finding"] == dict.fromkeys(("effusion", "nodule", "fracture", "none"), 6)
    assert train["sizes"]["image"]["width"] == {"smallest": 128, "median": 128, "largest": 128}


def test_the_benchmark_is_clean(tmp_path: Path) -> None:
    from medmvl.data.benchmarks.brain_atlas import build

    build(tmp_path / "data", patients=60, seed=0)
    assert audit([tmp_path / "data"], workers=2).findings == ()


def test_a_patient_and_a_study_in_two_splits(tmp_path: Path) -> None:
    patient = row(tmp_path, "test", 50, meta={"patient": "tr3"})
    study = row(tmp_path, "val", 51, meta={"patient": "", "study": "tr4s"})
    kinds = planted(tmp_path, patient, study)
    assert set(kinds) == {"leak_patient", "leak_study"}
    assert kinds["leak_patient"][0] == 1 and both(kinds["leak_patient"][1][0]) == {("train", "tr3"), ("test", "te50")}
    assert kinds["leak_study"][0] == 1 and both(kinds["leak_study"][1][0]) == {("train", "tr4"), ("val", "va51")}


def test_a_patient_leak_tells_no_study_again(tmp_path: Path) -> None:
    assert set(planted(tmp_path, row(tmp_path, "test", 50, meta={"patient": "tr3", "study": "tr3s"}))) == {
        "leak_patient"
    }


def test_an_image_saved_again_as_jpeg_and_resized(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(scan(audit_store.seed_of("train", 5))).resize((90, 90)).save(stream, "JPEG", quality=60)
    copy = row(tmp_path, "test", 50, pixels=np.asarray(Image.open(stream)))
    kinds = planted(tmp_path, copy)
    assert set(kinds) == {"leak_near"}
    count, (example,) = kinds["leak_near"]
    assert count == 1 and both(example) == {("train", "tr5"), ("test", "te50")}
    assert example.address.endswith(".png") and example.other and example.other.address.endswith(".png")


def test_the_same_pixels_in_another_file(tmp_path: Path) -> None:
    copy = row(tmp_path, "val", 50)
    Image.fromarray(scan(audit_store.seed_of("train", 5))).save(tmp_path / "images" / "copy.tif")
    copy["messages"][0]["content"][0]["path"] = "images/copy.tif"
    kinds = planted(tmp_path, copy)
    assert set(kinds) == {"leak_file"} and both(kinds["leak_file"][1][0]) == {("train", "tr5"), ("val", "va50")}


def test_the_same_missing_file_in_two_splits(tmp_path: Path) -> None:
    pair = [row(tmp_path, "train", 50), row(tmp_path, "test", 51, answer="fracture")]
    pair[0]["messages"][1]["content"] = "fracture"
    for one in pair:
        one["messages"][0]["content"][0]["path"] = "images/nowhere.png"
    kinds = planted(tmp_path, *pair)
    assert set(kinds) == {"leak_file", "missing"}
    assert kinds["missing"][0] == 1


def test_volumes_of_one_content(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-900, 900, (6, 16, 16)).astype(np.int16)
    made = []
    for split, name in (("train", "a.nii.gz"), ("test", "b.nrrd")):
        one = row(tmp_path, split, 50)
        sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / name))
        one["messages"][0]["content"][0] = {"type": "volume", "path": name}
        made.append(one)
    kinds = planted(tmp_path, *made)
    assert set(kinds) == {"leak_file"}


def test_swapped_splits(tmp_path: Path) -> None:
    made = rows(tmp_path)
    for one in made:
        other = {"train": "test", "test": "train"}.get(one["split"], one["split"])
        one["id"] = f"{other}/{one['id']}"
    kinds = found(write(tmp_path, made))
    assert set(kinds) == {"split_official"} and kinds["split_official"][0] == 32


def test_swapped_files(tmp_path: Path) -> None:
    store = write(tmp_path, rows(tmp_path))
    texts = {split: (store / f"{split}.jsonl").read_text() for split in ("train", "test")}
    (store / "train.jsonl").write_text(texts["test"])
    (store / "test.jsonl").write_text(texts["train"])
    kinds = found(store)
    assert set(kinds) == {"split_manifest", "split_field", "split_size", "split_official"}
    assert kinds["split_field"][0] == 32
    assert any("hash" in example.detail for example in kinds["split_manifest"][1])


def test_broken_and_missing_media(tmp_path: Path) -> None:
    broken, gone = row(tmp_path, "test", 50), row(tmp_path, "test", 51)
    file = tmp_path / "images" / "test50.png"
    file.write_bytes(file.read_bytes()[:300])
    (tmp_path / "images" / "test51.png").unlink()
    kinds = planted(tmp_path, broken, gone)
    assert set(kinds) == {"corrupt", "missing"}
    (cut,), (absent,) = kinds["corrupt"][1], kinds["missing"][1]
    assert (cut.id, cut.path) == ("te50", "images/test50.png") and "damaged" in cut.detail
    assert (absent.id, absent.path) == ("te51", "images/test51.png")


def test_a_header_and_a_report_that_identify(tmp_path: Path) -> None:
    header = row(tmp_path, "train", 50)
    elements = {"PatientAddress": "7 Hidden Lane", "StudyDate": "20190314", "BurnedInAnnotation": "YES"}
    dicom_files.save(tmp_path / "images" / "x.dcm", dicom_files.dataset(scan(99_999).astype(np.uint16), **elements))
    header["messages"][0]["content"][0]["path"] = "images/x.dcm"
    said = "No effusion. Read by Jane Secret on 03/14/2019, MRN 4455667."
    report = row(tmp_path, "train", 51, answer=said, meta={"answer_type": "report"})
    short = row(tmp_path, "val", 52, answer="Mrs. Secret")
    result = audit([write(tmp_path, [*rows(tmp_path), header, report, short])], workers=2, names="all")
    kinds = {finding.kind: finding for finding in result.findings}
    assert set(kinds) == {"identifier_dicom", "identifier_date", "identifier_burned_in", "identifier_text"}
    assert kinds["identifier_dicom"].examples[0].id == "tr50"
    assert {"PatientName", "PatientAddress", "PatientID"} <= set(
        kinds["identifier_dicom"].examples[0].detail.split(", ")
    )
    assert kinds["identifier_text"].count == 2
    place = {named(e): (e.place, e.detail) for e in kinds["identifier_text"].examples}["train", "tr51"]
    assert place == ("messages[1], character 13", "R*** b* J*** S*** (name, date, number)")
    for path in write_audit(result, tmp_path / "out"):
        text = path.read_text().lower()
        for secret in ("secret", "jane", "hidden lane", "03/14", "20190314", "4455667", "12345678"):
            assert secret not in text, f"{secret} in {path.name}"


def test_a_header_is_looked_at_though_the_pixels_are_cut_off(tmp_path: Path) -> None:
    header = row(tmp_path, "train", 50)
    path = dicom_files.save(tmp_path / "images" / "x.dcm", dicom_files.dataset(scan(99_999).astype(np.uint16)))
    path.write_bytes(path.read_bytes()[:-100])
    header["messages"][0]["content"][0]["path"] = "images/x.dcm"
    kinds = planted(tmp_path, header)
    assert {"corrupt", "identifier_dicom"} <= set(kinds)


def test_fields_beside_the_pixels_that_identify(tmp_path: Path) -> None:
    picture, volume = row(tmp_path, "train", 50), row(tmp_path, "train", 51)
    words = PngInfo()
    words.add_text("Comment", "Read by Jane Secret on 03/14/2019")
    words.add_text("PatientName", "Zoe")
    words.add_text("Software", "a program of 2019-03-14")
    Image.fromarray(scan(50)).save(tmp_path / "images" / "train50.png", pnginfo=words)
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 99, (4, 8, 8)).astype(np.int16))
    image.SetMetaData("0010|0010", "SECRET^JANE")
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    volume["messages"][0]["content"][0] = {"type": "volume", "path": "a.nrrd"}
    kinds = planted(tmp_path, picture, volume)
    assert set(kinds) == {"identifier_metadata"} and kinds["identifier_metadata"][0] == 2
    told = {one.id: one.detail for one in kinds["identifier_metadata"][1]}
    assert told["tr50"] == "PNG Comment (name, date); PatientName in PNG text (person)"
    assert told["tr51"] == "PatientName in NRRD key (person, name)"


def boxed(folder: Path, number: int, coords: list[float], kind: str = "box", **about: object) -> dict:
    """A row whose answer is a box."""
    one = row(folder, "train", number, meta={"boxes": [{"coords": coords}]}, **about)
    one["messages"][1]["content"] = [{"type": kind, "box": 0}]
    return one


def test_boxes_outside_of_their_picture(tmp_path: Path) -> None:
    made = [
        boxed(tmp_path, 50, [10, 10, 60, 60]),
        boxed(tmp_path, 51, [-1, 0, 129, 129]),  # rounding
        boxed(tmp_path, 52, [100, 100, 140, 120]),
        boxed(tmp_path, 53, [130, 0, 150, 20]),
    ]
    kinds = planted(tmp_path, *made)
    assert set(kinds) == {"box_outside"} and kinds["box_outside"][0] == 2
    told = {one.id: one.detail for one in kinds["box_outside"][1]}
    assert told == {
        "tr52": "(100, 100, 140, 120) reaches out of 128 x 128 pixels",
        "tr53": "(130, 0, 150, 20) lies outside of 128 x 128 pixels",
    }


def test_boxes_of_volumes_are_held_against_the_frame_of_the_file(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 99, (40, 20, 10)).astype(np.int16))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))  # the file's axes are others than the patient's
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    made = [boxed(tmp_path, n, [0, 0, 0, *far]) for n, far in ((50, (10, 20, 40)), (51, (40, 20, 10)))]
    for one in made:
        one["messages"][0]["content"][0] = {"type": "volume", "path": "a.nii.gz"}
    count, (example,) = planted(tmp_path, *made)["box_outside"]
    assert count == 1 and example.id == "tr51" and example.detail.endswith("of 10 x 20 x 40 voxels")


def test_several_boxes_of_one_name_are_no_contradiction(tmp_path: Path) -> None:
    one = boxed(tmp_path, 50, [10, 10, 60, 60], question="Where is the lung?")
    other = boxed(tmp_path, 50, [70, 10, 120, 60], question="Where is the lung?") | {"id": "other"}
    assert planted(tmp_path, one, other) == {}


def test_a_black_picture(tmp_path: Path) -> None:
    kinds = planted(tmp_path, row(tmp_path, "test", 50, pixels=np.zeros((64, 64), np.uint8)))
    assert set(kinds) == {"blank"} and kinds["blank"][1][0].id == "te50" and KINDS["blank"].severity == "warning"


@pytest.mark.parametrize("side", [128, 70])
def test_a_mirrored_copy(tmp_path: Path, side: int) -> None:
    pixels = np.asarray(Image.fromarray(scan(audit_store.seed_of("train", 5))[:, ::-1]).resize((side, side)))
    kinds = planted(tmp_path, row(tmp_path, "test", 50, pixels=pixels))
    assert set(kinds) == {"leak_near"}
    (example,) = kinds["leak_near"][1]
    assert both(example) == {("train", "tr5"), ("test", "te50")} and example.detail.startswith("mirrored, ")


def test_repeats_and_contradictions(tmp_path: Path) -> None:
    one = row(tmp_path, "train", 50)
    again = one | {"id": "again"}
    other = one | {"id": "other", "messages": [one["messages"][0], {"role": "assistant", "content": "Nothing at all."}]}
    kinds = planted(tmp_path, one, again, other)
    assert set(kinds) == {"duplicate", "conflict"}
    assert kinds["duplicate"][0] == kinds["conflict"][0] == 1
    assert both(kinds["duplicate"][1][0]) == {("train", "tr50"), ("train", "again")}
    assert ("train", "other") in both(kinds["conflict"][1][0])
    assert "Nothing at all." in kinds["conflict"][1][0].text


def test_answers_that_differ_in_case_and_stops_only_are_no_contradiction(tmp_path: Path) -> None:
    one = row(tmp_path, "train", 50, answer="Pleural effusion")
    other = one | {"id": "x", "messages": [one["messages"][0], {"role": "assistant", "content": "pleural  effusion."}]}
    assert set(planted(tmp_path, one, other)) == {"duplicate"}


def test_empty_questions_and_answers(tmp_path: Path) -> None:
    silent = row(tmp_path, "test", 52)
    silent["messages"] = silent["messages"][:1]
    kinds = planted(tmp_path, row(tmp_path, "train", 50, answer=" "), row(tmp_path, "train", 51, question="\n"), silent)
    assert set(kinds) == {"empty_answer", "empty_question"}
    assert {e.id for e in kinds["empty_answer"][1]} == {"tr50", "te52"} and kinds["empty_question"][0] == 1


def test_the_same_words_in_two_splits(tmp_path: Path) -> None:
    made = [row(tmp_path, split, 50, question="Which organ makes bile?", answer="liver") for split in ("train", "test")]
    for one in made:
        one["messages"][0]["content"] = one["messages"][0]["content"][1:]
    assert set(planted(tmp_path, *made)) == {"leak_text"}


def test_broken_lines_end_nothing(tmp_path: Path) -> None:
    store = write(tmp_path, [*rows(tmp_path), row(tmp_path, "test", 50, meta={"patient": "tr3"})])
    audit_store.append(store, "test", '{"id": broken', {"id": "out", "messages": [
        {"role": "user", "content": [{"type": "image", "path": "../../x.png"}]}]})  # fmt: skip
    kinds = found(store)
    assert set(kinds) == {"broken_row", "split_manifest", "leak_patient"}
    assert kinds["broken_row"][0] == 2
    told = {example.row: example for example in kinds["broken_row"][1]}
    assert told[10].place == "line 10" and told[10].detail == "not valid JSON" and "JSON: " in told[10].text
    assert told[11].id == "out" and told[11].detail == "leaves the given folders"


def test_media_behind_a_broken_row_are_looked_at(tmp_path: Path) -> None:
    made = row(tmp_path, "train", 50)
    (tmp_path / "images" / "train50.png").write_bytes(b"no picture")
    store = write(tmp_path, rows(tmp_path))
    audit_store.append(store, "train", made | {"id": "wrong", "meta": {"boxes": "none"}}, made)
    kinds = found(store)
    assert set(kinds) == {"broken_row", "corrupt", "split_manifest"}
    assert [example.id for example in kinds["corrupt"][1]] == ["tr50"]


def test_a_file_that_kills_its_reader_is_one_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: str) -> object:
        if path.endswith("train3.png"):
            os.kill(os.getpid(), 9)
        return read_image(path)

    monkeypatch.setattr("medmvl.data.audit.media.read_image", read)
    kinds = planted(tmp_path)
    assert set(kinds) == {"corrupt"} and "died" in kinds["corrupt"][1][0].detail
    assert kinds["corrupt"][0] == 1 and kinds["corrupt"][1][0].id == "tr3"


def test_a_lost_split_is_told(tmp_path: Path) -> None:
    store = write(tmp_path, rows(tmp_path))
    (store / "val.jsonl").unlink()
    assert set(found(store)) == {"broken_split"}


def test_balance(tmp_path: Path) -> None:
    made = [one | {"task": "films/all"} for one in rows(tmp_path)]
    for one in made:
        one["messages"][1]["content"] = "none" if one["split"] == "train" else "nodule"
    kinds = found(write(tmp_path, made))
    assert set(kinds) == {"balance_majority", "balance_missing"}
    assert kinds["balance_majority"][0] == 1 and "'none' answers 100% of 24" in kinds["balance_majority"][1][0].detail


def test_train_of_one_store_and_test_of_another(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    first = [row(one, "train", number) for number in range(4)]
    second = [row(two, "test", number, source="others") for number in range(4)]
    first[0]["meta"]["patient"], second[1]["meta"]["patient"] = "12", "12"  # no more than a number
    first[2]["meta"]["patient"], second[3]["meta"]["patient"] = "p10000032", "p10000032"
    Image.fromarray(scan(audit_store.seed_of("train", 1))).save(two / "images" / "test0.png")
    kinds = found(write(one, first), write(two, second, "others"))
    assert set(kinds) == {"leak_patient", "leak_file"}
    assert kinds["leak_patient"][0] == 1 and both(kinds["leak_patient"][1][0]) == {("train", "tr2"), ("test", "te3")}
    assert both(kinds["leak_file"][1][0]) == {("train", "tr1"), ("test", "te0")}


def test_two_stores_of_one_data_set_share_patients(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, [row(one, "train", 0, meta={"patient": "12"})])
    write(two, [row(two, "test", 0, meta={"patient": "12"})])
    assert set(found(one, two)) == {"leak_patient"}


def test_parquet_shards_are_audited_alike(tmp_path: Path) -> None:
    made = [*rows(tmp_path), row(tmp_path, "test", 50, meta={"patient": "tr3"})]
    out = tmp_path / "shards"
    splits = write_splits(out, [Sample.from_dict(one, root=tmp_path) for one in made], "parquet", embed=True)
    write_manifest(out, {"name": "films", "version": "1", "licence": "made up"}, splits)
    kinds = found(out)
    assert set(kinds) == {"leak_patient"}


def use(folder: Path, **changes: object) -> Use:
    settings = {"tasks": None, "stage": "align", "split": "train"}
    return Use(folder, **settings | changes)  # type: ignore[arg-type]


def test_lengths_against_a_limit(tmp_path: Path) -> None:
    def count(sample: Sample) -> int:
        if sample.id == "tr7":
            raise SampleError("takes no such picture", sample.id)
        return len(sample.answer.split())

    long = row(tmp_path, "train", 50, answer="very " * 30 + "long", meta={"answer_type": "open"})
    store = write(tmp_path, [*rows(tmp_path), long])
    result = audit([store], uses=[use(store, tokens=Tokens(12, count, "words"))], workers=1, names="all")
    kinds = {finding.kind: finding for finding in result.findings}
    assert set(kinds) == {"too_long", "uncounted"}
    assert [(e.id, e.detail) for e in kinds["too_long"].examples] == [
        ("tr50", "31 tokens, max_tokens 12 in stage align")
    ]
    assert [e.id for e in kinds["uncounted"].examples] == ["tr7"]
    (histogram,) = result.lengths
    assert sum(histogram["counts"]) == 24 and histogram["limit"] == 12 and histogram["longest"] == 31


def test_only_the_tasks_of_a_recipe_are_counted(tmp_path: Path) -> None:
    def count(sample: Sample) -> int:
        assert sample.task == "films/report"
        return 99

    reports = [row(tmp_path, "train", number, task="films/report") for number in (50, 51)]
    store = write(tmp_path, [*rows(tmp_path), *reports])
    wanted = use(store, tasks=("films/report", "films/other"), tokens=Tokens(12, count, "99"))
    count_, examples = found(store, uses=[wanted])["too_long"]
    assert count_ == 2 and {example.id for example in examples} == {"tr50", "tr51"}


@pytest.mark.parametrize("words", ["Is the left lung clear?", "右肺有异常吗？", "Ist die linke Lunge frei?"])
def test_sides_against_mirroring(tmp_path: Path, words: str) -> None:
    store = write(tmp_path, [*rows(tmp_path), row(tmp_path, "train", 50, question=words)])
    assert found(store, uses=[use(store)]) == {}
    assert found(store, uses=[use(store, mirror=True, split="test")]) == {}
    assert found(store, uses=[use(store, mirror=True, tasks=("films/other",))]) == {}
    kinds = found(store, uses=[use(store, mirror=True)])
    assert set(kinds) == {"mirrored"} and [e.id for e in kinds["mirrored"][1]] == ["tr50"]


def test_marks_mean_kinds_groups_and_severities() -> None:
    assert blocking(["corrupt, missing"]) == {"corrupt", "missing"}
    assert blocking(["leak"]) == {"leak_patient", "leak_study", "leak_file", "leak_near", "leak_text"}
    assert blocking(["all"]) == set(KINDS)
    assert blocking(["error"]) == {name for name, kind in KINDS.items() if kind.severity == "error"}
    with pytest.raises(ValueError, match=r"'leek'.*did you mean 'leak'"):
        blocking(["leek"])


def test_a_ledger_shows_every_split_before_one_twice() -> None:
    ledger = Ledger(most=2)
    ledger.add("corrupt", 5, "5 files", [Example("a", "train", n) for n in range(5)])
    ledger.add("corrupt", 1, "1 file", [Example("a", "test", 9)])
    ledger.add("missing", 0, "none")
    (finding,) = ledger.findings()
    assert finding.count == 6 and [one.row for one in finding.examples] == [0, 9]


def test_files(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    made = [*rows(tmp_path), row(tmp_path, "test", 50, answer="", id=nasty)]
    copy = row(tmp_path, "test", 51, pixels=scan(audit_store.seed_of("train", 0)))
    result = audit([write(tmp_path, [*made, copy])], workers=2, blocking=blocking(["empty"]), names="all")
    assert result.blocks
    data, page = write_audit(result, tmp_path / "out")
    told = json.loads(data.read_text())
    assert told["format"] == 1 and told["blocks"] is True
    assert [(one["kind"], one["severity"], one["count"], one["blocking"]) for one in told["findings"]] == [
        ("leak_file", "error", 1, False), ("empty_answer", "error", 1, True)
    ]  # fmt: skip
    assert told["findings"][0]["examples"][0]["other"]["id"] in ("te51", "tr0")
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert text.count("data:image/png;base64,") == 2 and "http" not in text.replace("http-equiv", "")
    clean = write_audit(audit([write(tmp_path / "clean", rows(tmp_path / "clean"))]), tmp_path / "out2")[1]
    assert "Nothing was found" in clean.read_text()


def test_an_audit_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no store is there"):
        audit([tmp_path])


def test_near_pairs_match_a_search_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    phash = rng.integers(1, 1 << 63, 400, dtype=np.uint64)
    phash[200:] = phash[:200]
    for place in range(200, 400):
        for bit in rng.choice(64, place % 9, replace=False):
            phash[place] ^= np.uint64(1) << np.uint64(bit)
    small = np.tile(rng.integers(0, 255, 1024).astype(np.uint8), (400, 1))
    size = np.full((400, 3), 256)
    pairs = [(a, b) for a, b, _ in near_pairs(np.arange(200), np.arange(200, 400), phash, small, size)]
    distance = np.bitwise_count(phash[:200, None] ^ phash[None, 200:])
    assert sorted(pairs) == [(a, b + 200) for a, b in np.argwhere(distance <= 6).tolist()] and len(pairs) >= 150


def test_result_is_plain_json(tmp_path: Path) -> None:
    result = audit([write(tmp_path, rows(tmp_path))], workers=1)
    assert isinstance(result, Audit) and json.loads(json.dumps(result.to_dict())) == result.to_dict()
