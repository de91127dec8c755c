"""Decoding from the cache equals computing everything anew; batches, prefixes and sampling change nothing."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from medmvl.infer import engine
from medmvl.infer.choose import Chooser
from medmvl.model import attention
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
            layout = attention.Layout((attention.Segment(0, ids.shape[1]),))
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
    assert sum(tokens) == sum(prompt.num_tokens for prompt in about_one) - 3 * prefix


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
