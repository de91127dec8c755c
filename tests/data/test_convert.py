"""Conversion: what can be used is in the store, what cannot is told, and nothing else is lost."""

import json
import shutil
from pathlib import Path

import pytest
from pydantic import Field

import adapter_root
from medmvl.core.atomic import BusyError, only_writer
from medmvl.core.config import Strict
from medmvl.core.lookup import LookupNameError
from medmvl.core.schema import Image
from medmvl.data.adapters.base import Adapter, LayoutError
from medmvl.data.adapters.table import ADAPTERS, adapter
from medmvl.data.convert import Unpacked, choose, convert
from medmvl.data.lines import StoreError
from medmvl.data.rows import json_rows
from medmvl.data.store import SampleStore, split_names, write_samples

TOY = f"{__name__}:Toy"


class ToyOptions(Strict):
    """What a toy leaves to choose."""

    lower: bool = Field(default=False, description="write answers in small letters")


class Toy(Adapter):
    """Questions in rows.jsonl and valid.jsonl; a row with pixels keeps its picture in itself."""

    name = "toy"
    title = "A toy"
    version = "1.1"
    licence = "CC0"
    access = "made here"
    tasks = {"vqa": "questions", "text": "questions without a picture"}  # noqa: RUF012
    splits = {"train": "rows", "val": "valid"}  # noqa: RUF012
    layout = "rows.jsonl\nvalid.jsonl"
    Options = ToyOptions

    def samples(self, split, tasks):
        return self.each(json_rows(self.find(f"{self.splits[split]}.jsonl")), lambda row: self._make(row, split, tasks))

    def _make(self, row, split, tasks):
        task = "vqa" if "image" in row.data else "text"
        if task not in tasks:
            return
        media = []
        if task == "vqa":
            pixels = row.data.get("pixels")
            path = self.unpack(row.text("image"), pixels.encode()) if pixels else self.path(row.text("image"))
            media = [Image(path=path)]
        answer = row.text("answer").lower() if self.options.lower else row.text("answer")
        yield self.sample(f"{split}/{row.text('id')}", split, task, "What?", answer, media, patient=row.optional("who"))


def rows(folder: Path, name: str, *lines: dict | str) -> None:
    folder.mkdir(exist_ok=True)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / f"{name}.jsonl").write_text(text)


@pytest.fixture
def toy(tmp_path):
    root = tmp_path / "official"
    rows(
        root,
        "rows",
        {"id": 1, "image": "a.png", "answer": "Yes", "who": "p1"},
        {"id": 2, "image": "a.png", "answer": "No", "who": "p1"},
        '{"id": 3, "answer": ',
        {"id": 4, "answer": ""},
        {"id": 5, "image": "../away.png", "answer": "No"},
        {"id": 1, "image": "b.png", "answer": "No"},
        {"id": 6, "image": "b.png", "answer": "Maybe", "who": "p2"},
        {"id": 7, "answer": "Words", "who": "p2"},
    )
    rows(root, "valid", {"id": 1, "image": "a.png", "answer": "Yes", "who": "p3"})
    (root / "a.png").write_bytes(b"a")
    return root


def test_usable_rows_are_written_and_the_others_told(toy, tmp_path):
    done = convert(TOY, toy, tmp_path / "out")
    train = SampleStore(tmp_path / "out", roots=[toy])
    assert [sample.id for sample in train] == ["train/1", "train/2", "train/6", "train/7"]
    assert train[0].media[0].path == str(toy / "a.png") and len(SampleStore(tmp_path / "out", "val")) == 1
    told = [json.loads(line) for line in (tmp_path / "out/refused.jsonl").read_text().splitlines()]
    assert [row["place"] for row in told] == ["rows.jsonl:3", "rows.jsonl:4", "rows.jsonl:5", None]
    assert [row["id"] for row in told] == ["?", "4", "5", "train/1"] and "leaves" in told[2]["reason"]
    assert done.refused == 4 and len(done.told) == 4 and "rows.jsonl:3" in done.told[0]
    assert (done.missing, done.absent) == (2, [str(toy / "b.png")])  # the repetition as well: it is found later
    assert done.media_root == toy
    assert split_names(tmp_path / "out") == ["train", "val"]


def test_the_manifest_says_what_is_in_the_store_and_where_it_is_from(toy, tmp_path):
    manifest = convert(TOY, toy, tmp_path / "out", options={"lower": True}).manifest
    assert manifest == SampleStore(tmp_path / "out").manifest
    assert manifest["splits"]["train"]["tasks"] == {"toy/text": 1, "toy/vqa": 3}
    assert manifest["splits"]["train"]["patients"] == 2 and manifest["splits"]["train"]["media"] == 2
    assert (manifest["name"], manifest["licence"], manifest["access"]) == ("out", "CC0", "made here")
    assert manifest["credentialed"] is False and manifest["missing_media"] == 2
    assert manifest["adapter"] == {"name": "toy", "version": "1.1", "options": {"lower": True}}
    assert sum(manifest["refused"]["reasons"].values()) == manifest["refused"]["samples"] == 4
    assert set(manifest["source"]["files"]) == {"rows.jsonl", "valid.jsonl"}
    assert SampleStore(tmp_path / "out", roots=[toy])[0].answer == "yes"
    before = manifest["source"]["sha256"]
    assert convert(TOY, toy, tmp_path / "out").manifest["source"]["sha256"] == before
    (toy / "valid.jsonl").write_text((toy / "valid.jsonl").read_text().replace("Yes", "Not"))
    assert convert(TOY, toy, tmp_path / "out").manifest["source"]["sha256"] != before


def test_tasks_and_splits_are_chosen_by_either_name(toy, tmp_path):
    done = convert(TOY, toy, tmp_path / "out", tasks=["vqa"], splits=["valid"])
    assert done.refused == 0 and not (tmp_path / "out/refused.jsonl").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "val.index.npz", "val.jsonl"]
    with pytest.raises(ValueError, match=r"split 'vaild' is unknown; did you mean 'val'"):
        convert(TOY, toy, tmp_path / "out", splits=["vaild"])
    with pytest.raises(ValueError, match=r"task 'vqq' is unknown; did you mean 'vqa'\? Choices: text, vqa"):
        convert(TOY, toy, tmp_path / "out", tasks=["vqq"])
    with pytest.raises(LookupNameError, match="did you mean 'slake'"):
        convert("slak", toy, tmp_path / "out")
    with pytest.raises(ValueError, match=r"lowre.*did you mean 'lower'"):
        convert(TOY, toy, tmp_path / "out", options={"lowre": True})


def test_splits_that_are_not_named_stay(toy, tmp_path):
    out = tmp_path / "out"
    whole = convert(TOY, toy, out).manifest
    rows(toy, "valid", {"id": 1, "image": "a.png", "answer": "No"}, {"id": 2, "image": "a.png", "answer": "No"})
    again = convert(TOY, toy, out, splits=["val"]).manifest
    assert again["splits"]["train"] == whole["splits"]["train"] and again["splits"]["val"]["samples"] == 2
    assert again["hash"] != whole["hash"] and again == SampleStore(out).manifest
    assert (len(SampleStore(out, roots=[toy])), len(SampleStore(out, "val", roots=[toy]))) == (4, 2)
    parquet = convert(TOY, toy, out, splits=["val"], form="parquet").manifest
    assert len(SampleStore(out, "val", roots=[toy])) == 2 and split_names(out) == ["train", "val"]
    assert not (out / "val.jsonl").exists() and parquet["splits"]["train"] == whole["splits"]["train"]
    with pytest.raises(StoreError, match=r"holds the split\(s\) train, made by .*convert all splits together"):
        convert(TOY, toy, out, splits=["val"], options={"lower": True})
    assert sorted(convert(TOY, toy, out, options={"lower": True}).manifest["splits"]) == ["train", "val"]
    (toy / "valid.jsonl").unlink()
    with pytest.raises(LayoutError):
        convert(TOY, toy, out)
    assert split_names(out) == ["train", "val"]


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("slake", ["validate", "test"], ["val", "test"]),
        ("slake", ["validation"], ["val"]),
        ("ct_rate", ["valid"], ["val"]),
        ("mimic_cxr", ["validate"], ["val"]),
        ("annotations", ["dev"], ["val"]),
        ("pathvqa", ["validation"], ["val"]),
        ("medqa", ["dev"], ["val"]),
        ("m3d", ["validation", "train"], ["train", "val"]),
    ],
)
def test_splits_have_the_data_sets_own_names_too(name, given, meant):
    kind = adapter(name)
    assert choose(kind.splits, given, "split", also=kind.splits) == meant


def test_what_a_killed_conversion_left_goes_and_nobody_writes_beside(toy, tmp_path):
    out = tmp_path / "out"
    convert(TOY, toy, out)
    for name in (".train.jsonl.x9_1", ".manifest.json.abc", "..train.shards.q", ".refused.jsonl.zz"):
        (out / name).write_text("half")
    (out / ".train.shards").mkdir()
    (out / ".mine").write_text("kept")
    convert(TOY, toy, out)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".mine"]
    with only_writer(out), pytest.raises(BusyError, match="another process is writing there"):
        convert(TOY, toy, out)
    convert(TOY, toy, out)


def test_samples_without_media_can_be_refused(toy, tmp_path):
    done = convert(TOY, toy, tmp_path / "out", missing="refuse")
    assert [sample.id for sample in SampleStore(tmp_path / "out", roots=[toy])] == ["train/1", "train/2", "train/7"]
    assert done.missing == 2 and any("b.png" in told and "no such file" in told for told in done.told)


def test_what_is_no_store_of_this_data_is_not_replaced(toy, tmp_path):
    rows(tmp_path / "own", "train", {"id": "x", "messages": []})
    with pytest.raises(StoreError, match=r"holds train\.jsonl and no manifest: no conversion wrote it"):
        convert(TOY, toy, tmp_path / "own")
    convert("annotations", _annotation(tmp_path), tmp_path / "other")
    with pytest.raises(StoreError, match="holds a store of 'annotations'"):
        convert(TOY, toy, tmp_path / "other")
    sample = SampleStore(tmp_path / "other", roots=[tmp_path])[0]
    write_samples(tmp_path / "made", [sample], name="brain_atlas", version="1", licence="none")
    with pytest.raises(StoreError, match="holds a store of 'brain_atlas'"):
        convert(TOY, toy, tmp_path / "made")


def _annotation(folder: Path) -> Path:
    rows(folder, "mine", {"id": "a", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]})
    return folder / "mine.jsonl"


def test_nothing_usable_is_an_error_and_leaves_the_former_store(toy, tmp_path):
    convert(TOY, toy, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    rows(toy, "rows", {"id": 1}, '{"id"')
    with pytest.raises(StoreError, match=r"no sample can be used. 2 were refused:\n.*rows.jsonl:1.*\n.*rows.jsonl:2"):
        convert(TOY, toy, tmp_path / "out", splits=["train"])
    (toy / "valid.jsonl").unlink()
    with pytest.raises(LayoutError, match=r"valid.jsonl is missing[\s\S]*name it with --split and --task"):
        convert(TOY, toy, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_media_kept_inside_other_files_are_unpacked_into_the_store(toy, tmp_path):
    rows(
        toy,
        "rows",
        {"id": 1, "image": "x/1.png", "pixels": "one", "answer": "a"},
        {"id": 2, "image": "x/1.png", "pixels": "one", "answer": "b"},
        {"id": 3, "image": "x/1.png", "pixels": "two", "answer": "c"},
        {"id": 4, "image": "../1.png", "pixels": "one", "answer": "d"},
    )
    for _ in range(2):
        done = convert(TOY, toy, tmp_path / "out", splits=["train"])
        store = SampleStore(tmp_path / "out")
        assert [sample.id for sample in store] == ["train/1", "train/2"] and done.media_root is None
        assert Path(store[0].media[0].path) == tmp_path / "out/media/x/1.png"
        assert (tmp_path / "out/media/x/1.png").read_text() == "one"
        assert "two different media" in done.told[0] and "is no name" in done.told[1]
    assert [path.name for path in (tmp_path / "out/media").rglob("*")] == ["x", "1.png"]


def test_media_of_a_former_store_stay_what_they_were_when_a_conversion_fails(toy, tmp_path):
    rows(toy, "rows", {"id": 1, "image": "1.png", "pixels": "one", "answer": "a"})
    convert(TOY, toy, tmp_path / "out", splits=["train"])
    rows(toy, "rows", {"id": 1, "image": "1.png", "pixels": "new", "answer": "b"})
    (toy / "valid.jsonl").unlink()
    with pytest.raises(LayoutError):  # train was gone through, val is not there
        convert(TOY, toy, tmp_path / "out")
    (kept,) = SampleStore(tmp_path / "out")
    assert (kept.answer, Path(kept.media[0].path).read_text()) == ("a", "one")
    for _ in range(2):
        convert(TOY, toy, tmp_path / "out", splits=["train"])
        (fresh,) = SampleStore(tmp_path / "out")
        assert (fresh.answer, Path(fresh.media[0].path).read_text()) == ("b", "new")


def test_a_name_means_one_content_in_a_conversion_whatever_an_earlier_one_left(tmp_path):
    Unpacked(tmp_path)("x.png", b"former")
    for first, second in ((b"one", b"two"), (b"one", b"former"), (b"former", b"one")):
        unpack = Unpacked(tmp_path)
        path = unpack("x.png", first)
        assert unpack("x.png", first) == path and Path(path).read_bytes() == first
        with pytest.raises(ValueError, match="two different media"):
            unpack("x.png", second)
        assert Path(path).read_bytes() == first


def test_nothing_is_replaced_before_the_official_files_are_known(toy, tmp_path, monkeypatch):
    convert(TOY, toy, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def fails(source):
        raise KeyboardInterrupt

    monkeypatch.setattr("medmvl.data.convert.fingerprint", fails)
    with pytest.raises(KeyboardInterrupt):
        convert(TOY, toy, tmp_path / "out", splits=["train"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("name", ["", "/etc/x", "a/../../b", ".hidden/x", "a\\b", "a\0"])
def test_unpacked_media_stay_in_the_store(tmp_path, name):
    with pytest.raises(ValueError, match="is no name"):
        Unpacked(tmp_path)(name, b"x")
    assert list(tmp_path.iterdir()) == []


def test_counting_goes_on_for_every_row(toy, tmp_path):
    steps = []
    convert(TOY, toy, tmp_path / "out", advance=steps.append)
    assert sum(steps) == 9


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_every_data_set_becomes_a_store_of_what_its_adapter_yields(name, tmp_path):
    root = adapter_root.build(name, tmp_path / "root")
    done = convert(name, root.path, tmp_path / "out", options=root.options)
    counts = {
        (split, task): n for split, entry in done.manifest["splits"].items() for task, n in entry["tasks"].items()
    }
    assert counts == {key: count for key, count in root.counts.items() if count}
    assert done.refused == sum(root.refused.values())
    roots = [tmp_path / "root"]
    lines = [
        sample
        for split in split_names(tmp_path / "out")
        for sample in SampleStore(tmp_path / "out", split, roots=roots)
    ]
    assert len(lines) == sum(counts.values()) and {sample.source for sample in lines}
    convert(name, root.path, tmp_path / "all", options=root.options, form="parquet", embed=True)
    shutil.rmtree(tmp_path / "root")
    packed = [sample for split in split_names(tmp_path / "all") for sample in SampleStore(tmp_path / "all", split)]
    assert {sample.id for sample in packed} <= {sample.id for sample in lines}
    assert all(Path(path.partition("#")[0]).exists() for sample in packed for path in sample.media_key)
    assert packed and len(packed) == len(lines) - done.missing
