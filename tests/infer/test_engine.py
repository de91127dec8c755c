"""Decoding from the cache equals computing everything anew; batches, prefixes and sampling change nothing."""

import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from medmvl.core.layout import Layout, Segment
from medmvl.core.schema import SampleError
from medmvl.infer import engine, reader
from medmvl.infer.choose import Chooser
from medmvl.model import attention
from medmvl.model.kept import Writing
from medmvl.processing.collate import collate
from medmvl.processing.encoded import IGNORE
from medmvl.processing.pack import Row, alone
from tiny_vlm import TOKEN, TOKENS, VOCABULARY, pixels, samples, tiny_config, tiny_vlm

STOP = 5
WINDOW = {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]}
CASES = [
    ("llama", {}),
    ("qwen2", WINDOW),
    ("mistral", {"sliding_window": 5}),
    ("phi3", {"sliding_window": 5}),
    ("gemma2", {}),
    ("gemma3_text", {}),
    ("gpt_oss", {}),
    ("gpt2", {}),
    ("deepseek_v3", {}),
]


def make_processor(tokens=VOCABULARY, placeholder=TOKEN):
    return SimpleNamespace(
        tokenizer=range(tokens), placeholder_ids={"image": placeholder}, stop_ids=(STOP,), max_tokens=64
    )


def prompts(seed=0):
    """Prompts of several lengths about shared and own images, and about none."""
    found = []
    for sample in samples(seed):
        (branch,) = sample.branches
        spec = SimpleNamespace(size=(TOKENS, 6), channels=1)
        media = tuple(
            SimpleNamespace(**vars(m), spec=spec, view=SimpleNamespace(pixels=pixels(m))) for m in sample.media
        )
        asked = replace(branch, labels=np.full(len(branch.ids), IGNORE, np.int32))
        found.append(replace(sample, branches=(asked,), media=media))
    return found


def recomputed(model, prompt, count, banned=()):
    """Greedy answer without cache, layout or packing: the whole row anew for every token."""
    batch = collate(Row(tuple(alone([prompt]))))
    ids, answer = batch.ids, []
    with torch.no_grad():
        for _ in range(count):
            layout = Layout((Segment(0, ids.shape[1]),))
            at = torch.tensor([ids.shape[1] - 1])
            logits = model.logits(ids, None, layout, batch.pixels, batch.media_positions, at)[0]
            logits[list(banned)] = -torch.inf
            token = int(logits.argmax())
            if token == STOP:
                break
            answer.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return answer


@pytest.mark.parametrize(("family", "changes"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_cached_equals_recomputed_at_any_batch_size(family, changes):
    config = tiny_config(family, {"initializer_range": 0.4, **changes})
    model, processor, asked = tiny_vlm(config, attention.NAME), make_processor(), prompts()
    reference = tiny_vlm(config, "eager")
    expected = [recomputed(reference, prompt, 9) for prompt in asked]
    assert len({tuple(answer) for answer in expected}) > 1
    assert engine.generate(model, processor, asked, max_new_tokens=9) == expected
    for size in (1, 4):
        parts = [asked[i : i + size] for i in range(0, len(asked), size)]
        assert [ids for part in parts for ids in engine.generate(model, processor, part, 9)] == expected
    assert list(engine.stream(model, processor, asked[0], 9)) == expected[0]


@pytest.mark.parametrize("family", ["mamba", "stablelm", "falcon"])
def test_unpackable_families_run_one_by_one(family):
    changes = {"state_size": 4, "alibi": False} if family != "stablelm" else {}
    config = tiny_config(family, {"initializer_range": 0.4, **changes})
    model = tiny_vlm(config, "eager")
    assert not model.packable
    model.llm.generation_config = GenerationConfig(repetition_penalty=9.0)
    expected = [recomputed(model, prompt, 6) for prompt in prompts()]
    assert engine.generate(model, make_processor(), prompts(), 6) == expected
    assert model.llm.generation_config.repetition_penalty == 9.0
    assert list(engine.stream(model, make_processor(), prompts()[1], 6)) == expected[1]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_who_is_done_leaves_and_others_join(batch_size):
    """Answers of very different lengths, few at a time: each is what it is alone, and nobody waits for the longest."""
    config = tiny_config("qwen2", {"initializer_range": 0.4, **WINDOW})
    model, processor = tiny_vlm(config, attention.NAME), make_processor()
    asked = [replace(prompt, id=f"{seed}-{prompt.id}") for seed in range(3) for prompt in prompts(seed)]
    whole = [engine.generate(model, processor, [prompt], 12)[0] for prompt in asked]
    processor.stop_ids = (STOP, whole[0][0], whole[1][3], whole[2][6])
    expected = [until(answer, processor.stop_ids) for answer in whole]
    assert {0, 12} <= set(map(len, expected))
    steps, written = [], []
    model.llm.register_forward_pre_hook(
        lambda module, args, given: steps.append(len(given["input_ids"])) if "input_ids" in given else None,
        with_kwargs=True,
    )
    for number, ids in engine.generate_each(model, processor, asked, 12, batch_size=batch_size):
        assert ids == expected[number]
        written.append(number)
    assert sorted(written) == list(range(len(asked)))
    assert max(steps) <= batch_size
    # A line takes part in a step for each token but its last; the end mark is one.
    assert sum(steps) == sum(min(len(answer), 11) for answer in expected)


def until(ids, stops):
    return ids[: next((place for place, token in enumerate(ids) if token in stops), len(ids))]


def test_memory_bounds_how_many_answers_are_written_at_a_time(monkeypatch):
    model, asked = tiny_vlm(tiny_config("llama"), attention.NAME), prompts()
    expected = engine.generate(model, make_processor(), asked, 6)
    running = []
    attend = Writing.attend
    monkeypatch.setattr(Writing, "attend", lambda self, *rest: running.append(len(self)) or attend(self, *rest))
    most = []
    for tokens in (1, 60, 120, 10_000):
        monkeypatch.setattr(reader, "_MEMORY", tokens * 2 * 2 * 2 * 8 * 4 * 2)  # keys, values; layers, heads, width
        assert engine.generate(model, make_processor(), asked, 6) == expected
        most.append(max(running))
        running.clear()
    assert most[0] == 1 < most[1] < most[2] < most[3] == len(asked)


def test_prompts_are_taken_bit_by_bit_and_their_pixels_let_go():
    model, processor = tiny_vlm(tiny_config("llama"), attention.NAME), make_processor()
    alive, taken = weakref.WeakSet(), []

    def coming():
        for number in range(4000):
            for prompt in prompts()[:2]:
                (medium,) = prompt.media
                view = View(medium.view.pixels)
                alive.add(view)
                own = SimpleNamespace(**{**vars(medium), "key": f"{number}", "view": view})
                taken.append(number)
                yield replace(prompt, media=(own,))
                del prompt, medium, view, own

    answers = engine.generate_each(model, processor, coming(), 2, batch_size=8)
    for _ in range(700):
        next(answers)
        assert len(taken) < 700 + 2 * 512 + 2
    assert len(alive) <= len(taken) - 690
    answers.close()


class View:
    """Pixels that tell when they are gone."""

    def __init__(self, pixels):
        self.pixels = pixels


class Broken(SimpleNamespace):
    """A medium whose file is damaged."""

    @property
    def view(self):
        raise SampleError("damaged", "first", "b.png")


def damaged(medium):
    return Broken(**{name: value for name, value in vars(medium).items() if name != "view"})


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_a_medium_that_cannot_be_read_costs_the_others_nothing(family):
    changes, implementation = ({}, attention.NAME) if family == "llama" else ({"state_size": 4}, "eager")
    model, processor, asked = tiny_vlm(tiny_config(family, changes), implementation), make_processor(), prompts()
    expected = engine.generate(model, processor, asked, 3)
    broken = [replace(p, media=tuple(damaged(m) if m.key == "a" else m for m in p.media)) for p in asked]
    coming = [*broken, SampleError("no question", "last")]
    for batch_size in (2, 100):
        found = dict(engine.generate_each(model, processor, coming, 3, batch_size=batch_size))
        assert sorted(found) == list(range(len(coming)))
        for number, prompt in enumerate(asked):
            if any(m.key == "a" for m in prompt.media):
                assert str(found[number]) == "sample 'first' (b.png): damaged"
            else:
                assert found[number] == expected[number]
        assert found[len(asked)] is coming[-1]
    with pytest.raises(SampleError, match="damaged"):
        engine.generate(model, processor, broken, 3)
    with pytest.raises(SampleError, match="damaged"):
        list(engine.stream(model, processor, broken[0], 3))
    with pytest.raises(SampleError, match="damaged"):
        engine.score(model, [(prompt, [[7]]) for prompt in broken])


def test_shared_prefix_and_images_are_computed_once():
    model, asked = tiny_vlm(tiny_config("qwen2"), attention.NAME), prompts()
    images, tokens = [], []
    model.towers["image"].register_forward_hook(lambda module, args, out: images.append(len(args[0])))
    model.llm.get_input_embeddings().register_forward_hook(lambda module, args, out: tokens.append(args[0].numel()))
    about_one = [prompt for prompt in asked if [m.key for m in prompt.media] == ["a"]]
    assert len(about_one) == 4
    engine.generate(model, make_processor(), about_one, max_new_tokens=1)
    assert images == [1]
    prefix = 3 + 4  # header and image
    read = sum(prompt.num_tokens for prompt in about_one) - 3 * prefix
    assert sum(tokens) == read
    tokens.clear()
    engine.generate(model, make_processor(), about_one, max_new_tokens=1, batch_size=2)
    assert images == [1, 1]
    assert sum(tokens) == read
    tokens.clear()
    options = [[7], [7, 8], [9, 9, 9]]
    engine.score(model, [(prompt, options) for prompt in about_one], batch_size=3)
    assert images == [1, 1, 1]
    assert sum(tokens) == read + len(about_one) * (0 + 1 + 2)


def test_placeholders_and_unknown_rows_are_never_chosen():
    model = tiny_vlm(tiny_config("llama"), attention.NAME)
    (prompt, *_) = prompts()
    free = engine.generate(model, make_processor(), [prompt], 1)[0][0]
    banned = engine.generate(model, make_processor(placeholder=free), [prompt], 8)[0]
    assert banned == recomputed(tiny_vlm(tiny_config("llama"), "eager"), prompt, 8, banned=[free])
    assert free not in banned
    assert max(engine.generate(model, make_processor(tokens=20), [prompt], 30)[0]) < 20


def test_stops_at_the_end_mark_and_leaves_it_out():
    model, asked = tiny_vlm(tiny_config("llama"), attention.NAME), prompts()
    processor = make_processor()
    whole = engine.generate(model, processor, asked, 9)
    processor.stop_ids = (whole[0][2], whole[1][0])
    cut = engine.generate(model, processor, asked, 9)
    for before, after in zip(whole, cut, strict=True):
        ends = [i for i, token in enumerate(before) if token in processor.stop_ids]
        assert after == before[: ends[0]] if ends else after[: len(before)] == before


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_samples_do_not_depend_on_their_batch(top_p):
    model, asked = tiny_vlm(tiny_config("qwen2", WINDOW), attention.NAME), prompts()

    def draw(part, seed=1):
        return engine.generate(model, make_processor(), part, 8, temperature=1.5, top_p=top_p, seed=seed)

    together = draw(asked)
    assert [ids for prompt in asked for ids in draw([prompt])] == together
    assert draw(asked[::-1])[::-1] == together
    assert draw(asked, seed=2) != together
    assert engine.generate(model, make_processor(), asked, 8, temperature=1e-6) == engine.generate(
        model, make_processor(), asked, 8
    )


def test_sampling_follows_the_probabilities():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.0, 0.3, 0.4]]))
    chooser = Chooser(make_processor(tokens=5, placeholder=2), temperature=1.0, top_p=0.65, seed=0)
    stream = chooser.stream("a")
    counts = np.bincount([chooser(logits.clone(), [stream])[0] for _ in range(3000)], minlength=5) / 3000
    np.testing.assert_allclose(counts, [0, 0, 0, 3 / 7, 4 / 7], atol=0.03)


def test_score_is_the_log_likelihood_of_each_option():
    config = tiny_config("gemma2")
    model, reference = tiny_vlm(config, attention.NAME), tiny_vlm(config, "eager")
    options = [[7], [7, 8, 9], [20, 21], [7]]
    for prompt in prompts()[:5]:
        (found,) = engine.score(model, [(prompt, options)])
        (other,) = engine.score(reference, [(prompt, options)])
        assert found == pytest.approx(other, rel=1e-5)
        batch = collate(Row(tuple(alone([prompt]))))
        at = torch.tensor([batch.ids.shape[1] - 1])
        first = reference.logits(batch.ids, None, batch.layout, batch.pixels, batch.media_positions, at)
        assert found[0] == pytest.approx(first[0].log_softmax(-1)[7].item(), rel=1e-4)
        assert found[0] == found[3]
    with pytest.raises(ValueError, match=r"option 1 .* has no tokens"):
        engine.score(model, [(prompts()[0], [[1], []])])


def test_scores_do_not_depend_on_who_is_scored_beside():
    model, asked = tiny_vlm(tiny_config("qwen2", WINDOW), attention.NAME), prompts()
    options = [[[7 + number], [8, 9, 10], [20, 21 + number]][: 1 + number % 3] for number in range(len(asked))]
    together = engine.score(model, zip(asked, options, strict=True))
    assert [len(scores) for scores in together] == [len(own) for own in options]
    for prompt, own, found in zip(asked, options, together, strict=True):
        assert engine.score(model, [(prompt, own)]) == [pytest.approx(found, rel=1e-5)]
    assert engine.score(model, []) == []
    assert engine.score(model, zip(asked[:2], [[], [[7]]], strict=True))[0] == []


def test_long_rope_prompts_that_reach_the_switch_stay_alone():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    limits = {"original_max_position_embeddings": 24, "max_position_embeddings": 96}
    config = tiny_config("phi3", {"rope_parameters": {**rope, **limits}, **limits, "initializer_range": 0.4})
    model, asked = tiny_vlm(config, attention.NAME), prompts()
    assert model.position_limit == 24
    lengths = [prompt.num_tokens for prompt in asked]
    assert min(lengths) + 6 <= 24 < max(lengths)
    together = engine.generate(model, make_processor(), asked, 6)
    assert together == [engine.generate(model, make_processor(), [prompt], 6)[0] for prompt in asked]


def test_modes_are_put_back_and_settings_checked():
    model, (prompt, *_) = tiny_vlm(tiny_config("llama"), attention.NAME), prompts()
    model.train()
    model.towers.eval()
    engine.generate(model, make_processor(), [prompt], 2)
    assert model.llm.training
    assert not model.towers.training
    with pytest.raises(ValueError, match="max_new_tokens"):
        engine.generate(model, make_processor(), [prompt], 0)
    with pytest.raises(ValueError, match="temperature"):
        engine.generate(model, make_processor(), [prompt], 1, temperature=-1)
    assert engine.generate(model, make_processor(), [], 4) == []
