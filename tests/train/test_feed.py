"""Rows are dealt to ranks without losing, repeating or reordering anything."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_run
from medmvl.core.schema import Sample, SampleError
from medmvl.data.mixture import Position
from medmvl.data.store import SampleStore
from medmvl.model import tune
from medmvl.train.assemble import Place, plan_stage, start_bundle
from medmvl.train.feed import Feed, held_out, loader, without_media
from medmvl.train.images import Picture, Shuffled, gather_pictures, once
from medmvl.train.objectives import find_classes
from medmvl.train.recipe import Recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("feed")
    tiny_run.write_data(root)
    return root


@pytest.fixture(scope="module")
def bundle(root):
    torch.manual_seed(0)
    return start_bundle(Recipe.load(tiny_run.recipe(root)))


def plan(root, bundle, world, rank, sharded=True, row_tokens=128, **changes):
    recipe = Recipe.load(tiny_run.recipe(root, tiny_run.stage(**changes), row_tokens=row_tokens))
    stage = recipe.stages[0]
    table = tune.apply(bundle.model, stage.tune)
    return plan_stage(stage, 0, bundle, recipe.run, table, Place(rank, world, sharded), print).objective


@settings(max_examples=12, deadline=None)
@given(world=st.integers(1, 5), row_tokens=st.sampled_from([128, 200, 1000]), global_batch=st.integers(1, 40))
def test_ranks_share_a_step(root, bundle, world, row_tokens, global_batch):
    ranks = [plan(root, bundle, world, rank, row_tokens=row_tokens, global_batch=global_batch) for rank in range(world)]
    step = next(ranks[0].order.steps(global_batch))
    prepared = [objective.preparer(step) for objective in ranks]
    wanted = [ranks[0].order[item].id for group in step.groups for item in group]
    batches = [batch for one in prepared for batch in one.batches if batch is not None]
    assert sorted(name for batch in batches for name in batch.sample_ids) == sorted(wanted)
    assert len({len(one.batches) for one in prepared}) == 1
    assert sum(one.samples for one in prepared) == global_batch
    alone = plan(root, bundle, 1, 0, row_tokens=row_tokens, global_batch=global_batch).preparer(step)
    assert sum(one.supervised for one in prepared) == alone.supervised
    assert sum(one.tokens for one in prepared) == alone.tokens <= prepared[0].slots
    for batch in [*batches, ranks[0].preparer.filler()]:  # sharded: every tower in every micro-step
        assert set(batch.pixels) == set(batch.media_positions) == {"image"}


def test_a_trained_tower_always_runs_and_a_frozen_one_only_where_it_must(root, bundle):
    data, llm = [{"source": "squares/text"}], {"llm": {"mode": "full", "lr": 1e-3}}
    for tune_rules, sharded, runs in ((tiny_run.FULL, False, True), (llm, False, False), (llm, True, True)):
        objective = plan(root, bundle, 1, 0, sharded, data=data, tune=tune_rules, global_batch=4)
        prepared = objective.preparer(next(objective.order.steps(4)))
        assert all(("image" in batch.pixels) == runs for batch in prepared.batches)
        assert all(batch.pixels["image"].shape[0] == 1 for batch in prepared.batches if runs)


def test_loader_processes_keep_the_order(root, bundle):
    def first(workers):
        objective = plan(root, bundle, 1, 0, augmentation={"noise": 0.2}, global_batch=5)
        steps = objective.order.steps(5, Position(0, 7))
        source = loader(Feed(lambda: steps, objective.preparer), workers)
        return [one for one, _ in zip(source, range(5), strict=False)]

    for one, other in zip(first(0), first(2), strict=True):
        assert one.after == other.after
        for mine, theirs in zip(one.batches, other.batches, strict=True):
            assert mine.sample_ids == theirs.sample_ids
            assert torch.equal(mine.ids, theirs.ids)
            assert torch.equal(mine.pixels["image"], theirs.pixels["image"])


def test_held_out_samples_come_once_and_are_the_same_every_time(root, bundle):
    order = plan(root, bundle, 1, 0).order
    for count, expected in ((10, 10), (10**6, len(order))):
        steps = list(held_out(order, count, 4))
        items = [item for step in steps for group in step.groups for item in group]
        assert len(items) == len(set(items)) == expected
        assert [step.groups for step in held_out(order, count, 4)] == [step.groups for step in steps]


def test_a_sample_without_its_media():
    image = {"type": "image", "path": "a.png"}
    asked = {"role": "user", "content": [image, {"type": "text", "text": "Which side?"}]}
    said = {"role": "assistant", "content": "left"}
    bare = without_media(Sample.from_dict({"id": "a", "messages": [asked, said]}))
    assert not bare.media
    assert [part.text for message in bare.messages for part in message.content] == ["Which side?", "left"]
    box = {"media": 0, "coords": [0, 0, 1, 1]}
    boxed = {"role": "assistant", "content": [{"type": "box", "box": 0}]}
    with pytest.raises(SampleError, match="shows a box"):
        without_media(Sample.from_dict({"id": "b", "messages": [asked, boxed], "meta": {"boxes": [box]}}))


@given(count=st.integers(1, 30), batch=st.integers(1, 12), start=st.integers(0, 9))
def test_pictures_come_once_an_epoch_and_resume_where_they_were(count, batch, start):
    order = Shuffled([Picture(str(number), "") for number in range(count)], (0, 1))
    steps = order.steps(batch, Position())
    first = [next(steps) for _ in range(12)]
    indices = [group[0][1] for step in first for group in step.groups]
    for epoch in range(len(indices) // count):
        assert sorted(indices[epoch * count : (epoch + 1) * count]) == list(range(count))
    resumed = order.steps(batch, first[start].after)
    assert [next(resumed) for _ in range(11 - start)] == first[start + 1 :]
    assert [group[0][1] for step in once(count, batch) for group in step.groups] == list(range(count))


def test_pictures_gather_what_their_samples_say(root):
    refused = []
    pictures = gather_pictures([SampleStore(root / "data/squares", "train")], refused.append)
    assert len(pictures) == 20
    assert not refused
    assert all(len(picture.texts) == 3 and picture.box is not None for picture in pictures)
    assert find_classes(pictures) == {"side": ["left", "right"], "size": ["large", "small"]}
    with pytest.raises(ValueError, match="no attribute"):
        find_classes([Picture("a", "a", {"side": "left"}), Picture("b", "b", {"side": "none"})])


def test_one_picture_has_one_value(root, tmp_path):
    from medmvl.data.store import write_samples

    one = SampleStore(root / "data/squares", "train")[0]
    meta = one.meta.model_copy(update={"attributes": {"side": "right"}})
    write_samples(
        tmp_path, [one, one.model_copy(update={"id": "other", "meta": meta})], name="x", version="1", licence=""
    )
    with pytest.raises(ValueError, match="one picture has one value"):
        gather_pictures([SampleStore(tmp_path, "train", roots=[root])], print)


def test_blank_rows_hold_no_learned_token_of_a_sample(root, bundle):
    filler = plan(root, bundle, 2, 0).preparer.filler()
    assert filler.sample_ids == ["(filler)"]
    output = bundle.model(**filler.model_inputs())
    assert np.isfinite(output.loss.item())
