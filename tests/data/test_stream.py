"""Streams: every sample once, whatever the shards and ranks, and the same ones after an interruption."""

import json
import shutil
from itertools import islice
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmvl.core.schema import Image, Message, Sample, SampleError, Text
from medmvl.data import parquet
from medmvl.data.lines import StoreError
from medmvl.data.store import write_manifest, write_splits
from medmvl.data.stream import stream

SAMPLES = 41


def sample(number, path=None):
    media = () if path is None else (Image(path=str(path)),)
    said = Message(role="user", content=(*media, Text(text="Q")))
    return Sample(id=f"s{number}", messages=(said, Message(role="assistant", content="A")), split="train")


def write(folder, samples, per_shard, embed=False):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_SHARD_SAMPLES", per_shard)
        patch.setattr(parquet, "_LARGEST_GROUP", 3)
        write_manifest(folder, {"name": "toy"}, write_splits(folder, samples, "parquet", embed))
    return folder


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Return stores of the same samples, with 1, 2, 3 and 6 shards; some samples share a medium."""
    folder = tmp_path_factory.mktemp("stores")
    samples = [sample(n, f"/x/{n // 3}.png" if n % 5 else None) for n in range(SAMPLES)]
    return {shards: write(folder / str(shards), samples, -(-SAMPLES // shards)) for shards in (1, 2, 3, 6)}


def ids(folder, **settings):
    return [one.id for one in stream(folder, roots=["/x"], **settings)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("shards", [1, 2, 3, 6])
def test_ranks_see_disjoint_and_complete_samples(stores, shards, world):
    assert len(list(stores[shards].glob("*.parquet"))) == shards
    seen = [one for rank in range(world) for one in ids(stores[shards], buffer=7, rank=rank, world=world)]
    assert len(seen) == SAMPLES and set(seen) == {f"s{n}" for n in range(SAMPLES)}


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_stream_that_was_stopped_anywhere_goes_on_the_same(stores, data):
    world = data.draw(st.integers(1, 3))
    chosen = {
        "buffer": data.draw(st.sampled_from([1, 5, 12, 100])),
        "seed": data.draw(st.integers(0, 3)),
        "epoch": data.draw(st.integers(0, 2)),
        "rank": data.draw(st.integers(0, world - 1)),
        "world": world,
    }
    folder = stores[data.draw(st.sampled_from(list(stores)))]
    whole = ids(folder, **chosen)
    running, done = stream(folder, roots=["/x"], **chosen), []
    for stop in data.draw(st.lists(st.integers(0, len(whole)), min_size=1, max_size=3)):
        done += [one.id for one in islice(running, stop)]  # stopped, and another process goes on
        running = stream(folder, roots=["/x"], state=json.loads(json.dumps(running.state)), **chosen)
    assert done + [one.id for one in running] == whole


def test_a_stream_that_was_resumed_and_not_used_is_where_it_was(stores):
    chosen = {"buffer": 7, "rank": 1, "world": 2, "roots": ["/x"]}
    whole = [one.id for one in stream(stores[2], **chosen)]
    for stop in range(0, len(whole) + 1, 4):
        running = stream(stores[2], **chosen)
        assert [one.id for one in islice(running, stop)] == whole[:stop]
        for _ in range(3):
            running = stream(stores[2], state=running.state, **chosen)
        assert [one.id for one in running] == whole[stop:]


def test_epochs_and_seeds_have_orders_of_their_own_and_samples_of_a_medium_stay_together(stores):
    orders = [ids(stores[3], buffer=20, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4 and all(sorted(one) == sorted(orders[0]) for one in orders)
    assert ids(stores[3], buffer=20) == orders[0]
    place = orders[0].index("s7")
    assert orders[0][place + 1] == "s8"


def test_a_store_elsewhere_is_streamed_with_its_media(tmp_path):
    (tmp_path / "pictures").mkdir()
    samples = []
    for number in range(6):
        (tmp_path / f"pictures/{number}.png").write_bytes(bytes([number]) * 9)
        samples += [sample(10 * number + n, tmp_path / f"pictures/{number}.png") for n in range(2)]
    write(tmp_path / "store", samples, 4, embed=True)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "store"), "/bucket/toy", recursive=True)
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(tmp_path / "pictures")
    try:
        seen = list(stream("memory://bucket/toy", buffer=4, cache=tmp_path / "cache"))
        assert sorted(one.id for one in seen) == sorted(one.id for one in samples)
        for one in seen:
            path = Path(one.media[0].path)
            assert path.is_relative_to(tmp_path / "cache") and path.read_bytes() == bytes([int(one.id[1:]) // 10]) * 9
        with pytest.raises(ValueError, match="name a folder for its media"):
            stream("memory://bucket/toy")
        with pytest.raises(StoreError, match="no split 'tain'; did you mean 'train'"):
            stream("memory://bucket/toy", "tain", cache=tmp_path)
        with pytest.raises(StoreError, match=r"memory://bucket/none/manifest\.json cannot be read"):
            stream("memory://bucket/none", cache=tmp_path)
    finally:
        memory.rm("/bucket", recursive=True)


def test_what_cannot_be_streamed_is_told(stores, tmp_path):
    write_manifest(tmp_path, {"name": "toy"}, write_splits(tmp_path, [sample(0)]))
    with pytest.raises(StoreError, match="--form parquet"):
        stream(tmp_path)
    for wrong in ({"rank": 2, "world": 2}, {"rank": -1}, {"buffer": 0}):
        with pytest.raises(ValueError, match=r"rank=.*buffer="):
            stream(stores[1], **wrong)
    state = stream(stores[1], seed=1).state
    with pytest.raises(ValueError, match="another pass: seed=1 there, 2 here"):
        stream(stores[1], seed=2, state=state)


def test_a_sample_that_cannot_be_used_loses_no_other(stores):
    seen = list(stream(stores[2]))  # without the root of the media
    broken = [one for one in seen if isinstance(one, SampleError)]
    assert len(seen) == SAMPLES and len(broken) == sum(n % 5 > 0 for n in range(SAMPLES))
    assert "leaves the given folders" in str(broken[0])
