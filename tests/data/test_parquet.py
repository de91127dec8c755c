"""Parquet shards hold the same samples as lines of JSON, and with embedded media everything else they need."""

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmvl.core.schema import Image, Message, Meta, Sample, SampleError, Text, Volume
from medmvl.data import parquet
from medmvl.data.convert import convert
from medmvl.data.embed import pack, unpack
from medmvl.data.lines import StoreError
from medmvl.data.store import SampleStore, find_source, write_manifest, write_splits

ABOUT = {"name": "toy", "version": "1", "licence": "CC0"}


def sample(number, media=(), split="train", task="toy/a"):
    said = (*media, Text(text=f"Question {number}?"))
    return Sample(
        id=f"s{number}",
        messages=(Message(role="user", content=said), Message(role="assistant", content=f"answer {number}")),
        source="toy",
        task=task,
        split=split,
        meta=Meta(patient=f"p{number // 3}"),
    )


def write(folder, samples, embed=False):
    return write_manifest(folder, ABOUT, write_splits(folder, samples, "parquet", embed))


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(20):
        (tmp_path / f"pictures/{number}.png").write_bytes(f"picture {number}".encode() * 50)
    return tmp_path / "pictures"


@pytest.fixture
def samples(pictures):
    """Return 60 samples: three questions to each picture, every tenth about none; two tasks."""
    return [
        sample(n, () if n % 10 == 9 else (Image(path=str(pictures / f"{n // 3}.png")),), task=f"toy/{'ab'[n % 2]}")
        for n in range(60)
    ]


@pytest.fixture
def small(monkeypatch):
    """Make rows, row groups and shards so small that there are several of each."""
    monkeypatch.setattr(parquet, "_LARGEST_ROW", 2)
    monkeypatch.setattr(parquet, "_LARGEST_GROUP", 7)
    monkeypatch.setattr(parquet, "_SHARD_SAMPLES", 17)


def plain(store):
    return [
        (one.id, one.task, one.split, one.meta, [m.model_dump(exclude={"path"}) for m in one.media]) for one in store
    ]


def test_shards_and_lines_serve_the_same_samples(tmp_path, pictures, samples, small):
    write(tmp_path / "shards", samples)
    write_manifest(tmp_path / "lines", ABOUT, write_splits(tmp_path / "lines", samples))
    shards, lines = (SampleStore(tmp_path / name, roots=[pictures]) for name in ("shards", "lines"))
    assert list(shards) == list(lines) == samples and shards[-1] == samples[-1] and shards[3:5] == samples[3:5]
    assert (shards.tasks == lines.tasks).all() and (shards.media_keys == lines.media_keys).all()
    assert shards.tasks.dtype == lines.tasks.dtype and shards.media_keys.dtype == np.uint64
    assert shards.task_names == lines.task_names == ["toy/a", "toy/b"]
    entry, other = (store.manifest["splits"]["train"] for store in (shards, lines))
    assert {key: entry[key] for key in ("samples", "patients", "media", "tasks")} == {
        key: other[key] for key in ("samples", "patients", "media", "tasks")
    }
    assert entry["files"] == [f"train-{n:05d}.parquet" for n in range(4)] and entry["sha256"] == shards.hash
    part = SampleStore(tmp_path / "shards", tasks=["toy/b"], roots=[pictures])
    assert [one.id for one in part] == [f"s{n}" for n in range(1, 60, 2)]
    with pytest.raises(IndexError):
        shards[60]


def test_sources_are_found_in_both_forms(tmp_path, samples):
    write(tmp_path / "mine", samples)
    assert find_source("mine", [tmp_path]).folder == tmp_path / "mine"
    assert find_source("mine/b", [tmp_path]).tasks == ("toy/b",)
    with pytest.raises(StoreError, match="no split 'tset'; Choices: train"):
        SampleStore(tmp_path / "mine", "tset")


def test_writing_lines_over_shards_leaves_no_shard_and_back(tmp_path, samples):
    for form in ("parquet", "jsonl", "parquet"):
        write_manifest(tmp_path / "s", ABOUT, write_splits(tmp_path / "s", samples[:9], form))
        names = {path.name for path in (tmp_path / "s").iterdir()}
        assert len(SampleStore(tmp_path / "s")) == 9
        assert names == ({"manifest.json", "train-00000.parquet"} if form == "parquet" else
                         {"manifest.json", "train.jsonl", "train.index.npz"})  # fmt: skip


def test_embedded_media_need_nothing_else(tmp_path, pictures, samples, small):
    write(tmp_path / "store", samples, embed=True)
    shutil.rmtree(pictures)
    shutil.move(tmp_path / "store", tmp_path / "moved")
    store = SampleStore(tmp_path / "moved")
    assert plain(store) == plain(samples)
    for one, original in zip(store, samples, strict=True):
        for medium, was in zip(one.media, original.media, strict=True):
            number = Path(was.path).stem
            assert Path(medium.path).read_bytes() == f"picture {number}".encode() * 50
            assert Path(medium.path).is_relative_to(tmp_path / "moved/unpacked") and medium.path.endswith(".png")
    assert len([path for path in (tmp_path / "moved/unpacked").rglob("*") if path.is_file()]) == 20
    assert store.manifest["splits"]["train"]["embedded"] is True


def test_a_medium_is_stored_once_for_the_samples_that_follow_each_other(tmp_path, pictures):
    (pictures / "0.png").write_bytes(np.random.default_rng(0).bytes(1_000_000))
    write(tmp_path / "store", [sample(n, [Image(path=str(pictures / "0.png"))]) for n in range(20)], embed=True)
    assert (tmp_path / "store/train-00000.parquet").stat().st_size < 1_050_000


def test_series_folders_and_fragments_are_embedded_and_names_of_slices_are_not(tmp_path):
    series = tmp_path / "DOE^JANE"
    series.mkdir()
    for number in range(3):
        (series / f"DOE_{number}.dcm").write_bytes(bytes([number]) * 9)
    (series / "X.JANE").write_bytes(b"3")
    (tmp_path / "scan.nii.gz").write_bytes(b"scan")
    media = [Volume(path=f"{series}#series=2"), Volume(path=f"{tmp_path}/scan.nii.gz#unit=HU&frame=1")]
    write(tmp_path / "store", [sample(0, media)], embed=True)
    content = (tmp_path / "store/train-00000.parquet").read_bytes().lower()
    assert b"doe" not in content and b"jane" not in content
    folder, fragment = SampleStore(tmp_path / "store")[0].media[0].path.split("#")
    assert fragment == "series=2"
    assert [path.read_bytes()[0] for path in sorted(Path(folder).iterdir())] == [0, 1, 2, ord("3")]
    assert {path.suffix for path in Path(folder).iterdir()} == {".dcm", ".bin"}
    assert SampleStore(tmp_path / "store")[0].media[1].path.endswith(".nii.gz#unit=HU&frame=1")


def test_what_cannot_be_embedded_is_refused_with_the_reason(tmp_path):
    for name in ("a.mhd", "sub/b.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "outer/inner").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("a.mhd", "another file beside it"),
        ("none.png", "No such file"),
        ("outer", "further folders"),
        ("empty", "is empty"),
    ):
        with pytest.raises(SampleError, match=f"'s0'.*{name}.*cannot be embedded: .*{said}"):
            pack(f"{tmp_path}/{name}", "s0")


def test_media_that_are_too_large_for_a_shard_are_refused_unread(tmp_path):
    with (tmp_path / "large.nii").open("wb") as file:
        file.truncate(2**31)  # a hole: it takes no space
    small = [Image(path=str(tmp_path / f"{number}.png")) for number in range(3)]
    for number, medium in enumerate(small):
        Path(medium.path).write_bytes(bytes([number]) * 40)
    refused = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "LARGEST", 100)
        samples = [sample(0, small[:2]), sample(1, small), sample(2, [Volume(path=str(tmp_path / "large.nii"))])]
        splits = write_splits(tmp_path / "store", samples, "parquet", True, refused.append)
    assert [error.sample_id for error in refused] == ["s1", "s2"] and splits["train"]["samples"] == 1
    assert "too many to embed" in str(refused[0]) and "2,147,483,648 bytes" in str(refused[1])


def test_damaged_media_and_addresses_that_lead_elsewhere_are_not_unpacked(tmp_path):
    (tmp_path / "a.png").write_bytes(b"good")
    address, _ = pack(f"{tmp_path}/a.png", "s0")
    with pytest.raises(ValueError, match="damaged"):
        unpack(tmp_path / "out", [(address, b"evil")])
    for wrong in ("../x.png", "/etc/x", "unpacked/aa/../../x", f"{address}/../../../x", "unpacked/aa/" + "a" * 39):
        with pytest.raises(ValueError, match="no address"):
            unpack(tmp_path / "out", [(wrong, b"good")])
    assert not (tmp_path / "out").exists() or not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def _read_all(store):
    return [Path(one.media[0].path).read_bytes()[:12] for one in store if one.media]


def test_processes_and_threads_share_a_store(tmp_path, pictures, samples, small):
    write(tmp_path / "store", samples, embed=True)
    store = SampleStore(tmp_path / "store")
    assert pickle.loads(pickle.dumps(store))[3].id == store[3].id
    shutil.rmtree(tmp_path / "store/unpacked")
    with get_context("fork").Pool(2) as pool:
        first, second = pool.map(_read_all, [store, store])
    assert first == second == _read_all(store) and len(first) == 54
    shutil.rmtree(tmp_path / "store/unpacked")
    with ThreadPoolExecutor(4) as pool:
        assert all(found == first for found in pool.map(_read_all, [store] * 4))


def test_damaged_shards_are_told(tmp_path, samples):
    write(tmp_path / "store", samples)
    shard = tmp_path / "store/train-00000.parquet"
    good = shard.read_bytes()
    place = good.index(b"Question") if b"Question" in good else 600
    shard.write_bytes(good[:place] + bytes([good[place] ^ 255]) + good[place + 1 :])
    with pytest.raises((StoreError, SampleError), match=r"train-00000\.parquet.*damaged"):
        list(SampleStore(tmp_path / "store", roots=[tmp_path]))
    shard.write_bytes(good[:-100])
    with pytest.raises(StoreError, match=r"train-00000\.parquet: cannot be read as Parquet"):
        SampleStore(tmp_path / "store")
    shard.unlink()
    with pytest.raises(StoreError, match=r"train-00000\.parquet"):
        SampleStore(tmp_path / "store")
    write(tmp_path / "other", samples[:5])
    shutil.copy(tmp_path / "other/train-00000.parquet", shard)
    with pytest.raises(StoreError, match="other samples than the manifest"):
        SampleStore(tmp_path / "store")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9))
def test_any_order_of_media_comes_back(tmp_path_factory, media, row, group, shard):
    folder = tmp_path_factory.mktemp("any")
    samples = [sample(n, [Image(path=f"/x/{m}.png")] if m else []) for n, m in enumerate(media)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_LARGEST_ROW", row), ("_LARGEST_GROUP", group), ("_SHARD_SAMPLES", shard)):
            patch.setattr(parquet, name, value)
        write(folder, samples)
    store = SampleStore(folder, roots=["/x"])
    assert list(store) == samples and [store[n] for n in reversed(range(len(store)))] == samples[::-1]


def test_conversion_embeds_and_refuses_what_is_missing(tmp_path, pictures):
    turns = [{"from": "human", "value": "<image> Q"}, {"from": "gpt", "value": "A"}]
    lines = [json.dumps({"id": str(n), "image": f"{n}.png", "conversations": turns}) for n in (0, 1, 30)]
    (pictures / "train.jsonl").write_text("\n".join(lines))
    done = convert("annotations", pictures / "train.jsonl", tmp_path / "out", form="parquet", embed=True)
    assert done.refused == 1 and "30.png" in done.told[0] and done.media_root is None
    shutil.rmtree(pictures)
    assert [Path(one.media[0].path).read_bytes()[:9] for one in SampleStore(tmp_path / "out")] == [
        b"picture 0",
        b"picture 1",
    ]
