"""Packing: whatever shares a row, every target sees exactly what it would see alone, and is counted once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_families import tokenizer_of
from medmvl.core.schema import Sample, SampleError
from medmvl.imaging.spec import VisionSpec
from medmvl.processing.collate import Batch, collate
from medmvl.processing.encoded import Encoded, Media
from medmvl.processing.pack import Group, Row, alone, pack, shared
from medmvl.processing.processor import Processor, TowerInput

SPEC = VisionSpec(size=(4, 4))
TOWERS = {"image": TowerInput("<image>", "image", 3, SPEC), "volume": TowerInput("<image3d>", "volume", 2, SPEC)}
PROCESSORS = {name: Processor(tokenizer_of(name), None, TOWERS) for name in ("chatml", "chatml_think", "gemma")}
FILES = ["a.png", "b.png", "c.nii"]

words = st.text("ab <", min_size=1, max_size=8).filter(str.strip)
media = st.sampled_from(FILES).map(lambda path: {"type": "volume" if path == "c.nii" else "image", "path": path})
questions = st.lists(st.one_of(media, words.map(lambda text: {"type": "text", "text": text})), min_size=1, max_size=3)


@st.composite
def sample_lists(draw: st.DrawFn) -> list[Sample]:
    """Samples with any mix of media, many about the same ones, some repeated."""
    heads = draw(st.lists(st.lists(media, max_size=2), min_size=1, max_size=3))
    samples = []
    for index in range(draw(st.integers(1, 6))):
        turns = draw(st.lists(st.tuples(questions, words), min_size=1, max_size=2))
        messages: list[dict[str, Any]] = []
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if draw(st.booleans()):
            head = draw(st.sampled_from(heads))
            messages[0] = {"role": "user", "content": [*head, {"type": "text", "text": answer}]}
        samples.append(Sample.model_validate({"id": f"s{index}", "messages": messages}))
    return samples


def fingerprint(medium: Media) -> np.ndarray:
    """Stand in for a file's pixels: one number that tells it apart."""
    return np.full((3, 4, 4), FILES.index(medium.path), np.float32)


def targets_with_context(rows: Sequence[Row]) -> Counter[tuple[Any, ...]]:
    """Count (sample, target, everything the predicting token attends to, position of that token)."""
    found: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        batch = collate(row, fingerprint)
        tokens: list[Any] = batch.ids[0].tolist()
        for tower, places in batch.media_positions.items():
            per = TOWERS[tower].num_tokens
            for index, place in enumerate(places.tolist()):
                tokens[place] = (FILES[int(batch.pixels[tower][index // per, 0, 0, 0])], index % per)
        ends = {segment.end: segment for segment in batch.layout.segments}
        segment_of = {i: segment for segment in ends.values() for i in range(segment.start, segment.end)}
        triples = zip(batch.logit_index.tolist(), batch.targets.tolist(), batch.owner.tolist(), strict=True)
        for index, target, owner in triples:
            segment = segment_of[index]
            context = tokens[segment.prefix_start : segment.prefix_end] + tokens[segment.start : index + 1]
            position = int(batch.positions[0, index])
            assert position == len(context) - 1
            found[batch.sample_ids[owner], target, tuple(context)] += 1
    return found


@pytest.mark.parametrize("family", PROCESSORS)
@settings(max_examples=60, deadline=None)
@given(samples=sample_lists(), limit=st.integers(0, 200))
def test_packing_changes_nothing_that_a_target_sees(family: str, samples: list[Sample], limit: int) -> None:
    encoded = [PROCESSORS[family].encode(sample) for sample in samples]
    max_tokens = max(found.num_tokens for found in encoded) + limit
    expected = targets_with_context([Row((group,)) for group in alone(encoded)])
    groups = shared(encoded)
    rows = pack(groups, max_tokens)
    assert targets_with_context(rows) == expected
    assert targets_with_context(pack(alone(encoded), max_tokens)) == expected
    assert sum(expected.values()) == sum(int((b.labels >= 0).sum()) for found in encoded for b in found.branches)
    assert all(row.num_tokens <= max_tokens for row in rows)
    assert all(row.layout.length == row.num_tokens for row in rows)
    assert sum(group.num_tokens for group in groups) <= sum(len(b.ids) for found in encoded for b in found.branches)


def talk(sample_id: str, path: str, question: str, answer: str) -> Encoded:
    content = [{"type": "image", "path": path}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return PROCESSORS["chatml"].encode(Sample.model_validate({"id": sample_id, "messages": messages}))


def test_questions_about_one_image_share_all_up_to_where_they_differ() -> None:
    first, second = talk("1", "a.png", "Is it bright?", "yes"), talk("2", "a.png", "Is it large?", "no")
    (group,) = shared([first, second])
    head = first.branches[0].ids.tolist()
    common = next(i for i, (a, b) in enumerate(zip(head, second.branches[0].ids.tolist(), strict=False)) if a != b)
    assert group.prefix.tolist() == head[:common]
    assert (group.prefix == PROCESSORS["chatml"].placeholder_ids["image"]).sum() == 3
    assert [m.path for m in group.media] == ["a.png"]
    assert group.sample_ids == ("1", "2")
    assert shared([first, talk("3", "b.png", "Is it bright?", "yes")])[0].prefix.size == 0


def test_a_prefix_ends_before_the_first_learned_token() -> None:
    (group,) = shared([talk("1", "a.png", "Is it?", "yes, left"), talk("2", "a.png", "Is it?", "yes, right")])
    batch = collate(Row((group,)), fingerprint)
    last = len(group.prefix) - 1
    assert batch.logit_index.tolist().count(last) == 2
    assert batch.num_supervised == sum(int((branch.labels >= 0).sum()) for branch in group.branches)


def test_prompts_share_too_and_keep_a_token_each() -> None:
    processor = PROCESSORS["chatml"]
    content = [{"type": "image", "path": "a.png"}, {"type": "text", "text": "Is it?"}]
    sample = Sample.model_validate({"id": "1", "messages": [{"role": "user", "content": content}]})
    (group,) = shared([processor.prompt(sample), processor.prompt(sample)])
    assert [len(branch.ids) for branch in group.branches] == [1, 1]


def test_a_large_group_is_split_and_repeats_its_prefix() -> None:
    encoded = [talk(str(i), "a.png", f"Question {i}?", "yes") for i in range(9)]
    (group,) = shared(encoded)
    limit = len(group.prefix) + 3 * max(len(branch.ids) for branch in group.branches)
    rows = pack([group], limit)
    assert [len(row.groups) for row in rows] == [1, 1, 1]
    assert all(row.groups[0].prefix.tolist() == group.prefix.tolist() for row in rows)
    assert [sample_id for row in rows for sample_id in row.sample_ids] == [str(i) for i in range(9)]
    with pytest.raises(SampleError, match=r"'0': \d+ tokens are more than a row of 20 holds"):
        pack([group], 20)


BLANK = Group((), np.zeros(0, np.int32), (), ())
"""To be made as long as wanted."""


def sized(name: str, length: int) -> Group:
    found = talk(name, "a.png", "q", "a" * length)
    (group,) = alone([found])
    return group


def test_rows_fill_up_and_do_not_depend_on_chance() -> None:
    groups = [sized(str(i), 5 + 7 * (i % 5)) for i in range(20)]
    sizes = [group.num_tokens for group in groups]
    limit = 2 * max(sizes)
    rows = pack(groups, limit)
    again = pack(groups, limit)
    names = [row.sample_ids for row in rows]
    assert names == [row.sample_ids for row in again]
    assert sorted(n for row in names for n in row) == sorted(str(i) for i in range(20))
    assert all(list(row) == sorted(row, key=int) for row in names)
    assert [int(row[0]) for row in names] == sorted(int(row[0]) for row in names)
    assert len(rows) <= -(-sum(sizes) // limit) + 1
    assert pack([], 10) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 60))
def test_rows_are_few_even_and_a_multiple_of_the_devices(lengths: list[int], devices: int, spare: int) -> None:
    groups = [replace(BLANK, prefix=np.zeros(length, np.int32)) for length in lengths]
    most = max(lengths) + spare
    fewest, rows = pack(groups, most), pack(groups, most, devices)
    for found in (fewest, rows):
        assert sorted(len(group.prefix) for row in found for group in row.groups) == sorted(lengths)
        assert all(row.num_tokens <= most for row in found)
    # All rows but one are more than half full, or two of them would be one.
    assert sum(lengths) > most / 2 * (len(fewest) - 1)
    if len(rows) != len(fewest):
        assert len(rows) == min(-(-len(fewest) // devices) * devices, len(lengths))
        filled = [row.num_tokens for row in rows]
        assert max(filled) - min(filled) <= max(lengths)


def test_ranks_with_rows_of_like_length_wait_little() -> None:
    """Groups of eight questions, as many as a step of 64 shows, on four devices."""
    lengths = [560 + 10 * (number % 9) for number in range(8)]
    rows = pack([replace(BLANK, prefix=np.zeros(length, np.int32)) for length in lengths], 2048, 4)
    filled = [row.num_tokens for row in rows]
    assert len(rows) == 4
    assert sum(filled) / (4 * max(filled)) > 0.97


def test_batches_hold_one_picture_per_group_and_pictures_of_one_file_are_read_once() -> None:
    pool: dict[str, Media] = {}
    processor = PROCESSORS["chatml"]
    content = [
        {"type": "image", "path": "a.png"},
        {"type": "image", "path": "b.png"},
        {"type": "text", "text": "Same?"},
    ]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "no"}]
    twice = [
        processor.encode(Sample.model_validate({"id": name, "messages": messages}), pool=pool) for name in ("1", "2")
    ]
    batch = collate(Row(tuple(shared(twice))), fingerprint)
    assert batch.pixels["image"][:, 0, 0, 0].tolist() == [0, 1]
    assert len(batch.media_positions["image"]) == 6
    assert set(batch.pixels) == {"image"}
    assert sorted(pool) == ["image:a.png", "image:b.png"]


def test_text_only_rows_carry_no_pixels() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    found = PROCESSORS["chatml"].encode(Sample.model_validate({"id": "t", "messages": messages}))
    batch: Batch = collate(Row(tuple(alone([found]))))
    assert batch.pixels == batch.media_positions == {}
    assert batch.ids.shape == batch.positions.shape == (1, found.num_tokens)
    assert set(batch.model_inputs()) == {
        "ids",
        "positions",
        "layout",
        "pixels",
        "media_positions",
        "logit_index",
        "targets",
        "questions",
        "features",
    }
    assert batch.to("cpu").sample_ids == ["t"]


def test_media_and_placeholders_that_do_not_match_are_refused() -> None:
    (group,) = alone([talk("1", "a.png", "q", "a")])
    broken = Group((*group.media, *group.media), group.prefix, group.branches, group.sample_ids)
    with pytest.raises(ValueError, match="samples 1: 3 placeholder tokens of tower 'image', but its 2 media need 6"):
        collate(Row((broken,)), fingerprint)
    bare = Group((), group.prefix, group.branches, group.sample_ids)
    with pytest.raises(ValueError, match="samples 1: "):
        collate(Row((broken, bare)), fingerprint)
