"""The model's forward: media in place, loss at the labels, and loud errors where counts do not fit."""

import copy

import pytest
import torch

from medmvl.core.layout import Layout, Segment
from medmvl.model import attention
from medmvl.model.vlm import VLM
from medmvl.processing.collate import collate
from medmvl.processing.pack import pack, shared
from tiny_vlm import TOKEN, TOKENS, pixels, samples, tiny_config, tiny_vlm


@pytest.fixture
def model():
    return tiny_vlm(tiny_config("qwen2"), attention.NAME)


@pytest.fixture
def inputs():
    (row,) = pack(shared(samples(0)), 1000)
    return collate(row, pixels).model_inputs()


def test_loss_is_the_mean_over_the_normalizer(model, inputs):
    out = model(**inputs)
    torch.testing.assert_close(out.loss, out.token_losses.sum())
    torch.testing.assert_close(model(**inputs, normalizer=10).loss, out.loss / 10)
    logits = model.logits(**{key: value for key, value in inputs.items() if key != "targets"})
    assert logits.shape == (len(inputs["targets"]), 61)
    expected = torch.nn.functional.cross_entropy(logits, inputs["targets"], reduction="none")
    torch.testing.assert_close(out.token_losses, expected)
    assert model(**inputs, normalizer=torch.tensor(10.0)).loss.dtype == torch.float32


def test_media_take_the_place_of_placeholders_and_words_stay(model, inputs):
    places = inputs["media_positions"]["image"]
    embeddings = model.embed(inputs["ids"], inputs["pixels"], inputs["media_positions"])
    features = model.towers["image"](inputs["pixels"]["image"]).flatten(0, 1)
    torch.testing.assert_close(embeddings[0, places], features)
    words = inputs["ids"][0] != TOKEN
    torch.testing.assert_close(embeddings[0, words], model.llm.get_input_embeddings()(inputs["ids"][0, words]))


def test_gemma_scales_words_and_leaves_media_as_the_connector_gives_them():
    model = tiny_vlm(tiny_config("gemma"), attention.NAME)
    ids = torch.tensor([[3, *[TOKEN] * TOKENS, 4]])
    embeddings = model.embed(ids, {"image": torch.ones(1, TOKENS, 6)}, {"image": torch.arange(1, 1 + TOKENS)})
    table = model.llm.get_input_embeddings().weight
    torch.testing.assert_close(embeddings[0, 0], table[3] * 32**0.5)
    torch.testing.assert_close(embeddings[0, 1:-1], model.towers["image"](torch.ones(1, TOKENS, 6))[0])
    text = torch.tensor([[3, 4, 5]])
    layout, every = Layout((Segment(0, 3),)), torch.arange(3)
    torch.testing.assert_close(
        model.logits(text, every[None], layout, {}, {}, every), model.llm(input_ids=text, use_cache=False).logits[0]
    )


def test_a_tower_without_places_runs_with_weight_zero(model):
    (row,) = pack(shared([sample for sample in samples(0) if not sample.media]), 1000)
    inputs = collate(row, pixels).model_inputs()
    alone = model(**inputs)
    alone.loss.backward()
    assert all(p.grad is None for p in model.towers.parameters())
    model.zero_grad()
    blank = {"pixels": {"image": torch.randn(1, TOKENS, 6)}}
    for places in ({}, {"image": torch.empty(0, dtype=torch.long)}):
        out = model(**{**inputs, **blank, "media_positions": places})
        assert torch.equal(out.token_losses, alone.token_losses)
        out.loss.backward()
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.towers.parameters())


def test_towers_run_in_the_order_of_the_model(model, inputs):
    """The row's order differs between ranks: under ZeRO-3 they would gather different weights."""
    model.towers["volume"] = copy.deepcopy(model.towers["image"])
    called = []
    for name, tower in model.towers.items():
        tower.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    pixels, places = inputs["pixels"]["image"], inputs["media_positions"]["image"]
    for order in (("image", "volume"), ("volume", "image")):
        shown = {name: pixels if name == "image" else torch.zeros(1, TOKENS, 6) for name in order}
        model(**inputs | {"pixels": shown, "media_positions": {"image": places}})
    assert called == ["image", "volume"] * 2


def test_nothing_is_changed_in_place(model, inputs):
    before = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    model(**inputs)
    assert all(torch.equal(inputs[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": {"image": torch.randn(2, TOKENS, 6)}}, "2 media give 8 tokens, but the row has"),
        ({"pixels": {}}, "need pixels"),
        ({"pixels": {"image": torch.randn(4, TOKENS, 6), "volume": torch.ones(1)}}, "the model's towers: image"),
        ({"pixels": {}, "media_positions": {}}, "a placeholder without its image"),
    ],
)
def test_counts_that_do_not_fit_are_named(model, inputs, change, message):
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **change})


def test_an_llm_that_cannot_be_packed_refuses_rows_of_several_samples(inputs):
    model = tiny_vlm(tiny_config("stablelm"), "eager")
    assert not model.packable
    with pytest.raises(ValueError, match=r"one sample at a time \(stablelm: its layers drop"):
        model(**inputs)


def test_rows_may_not_mix_lengths_that_switch_rotary_frequencies(inputs):
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    limits = {"original_max_position_embeddings": 20, "max_position_embeddings": 96}
    model = tiny_vlm(tiny_config("phi3", {"rope_parameters": {**rope, **limits}, **limits}), attention.NAME)
    with pytest.raises(ValueError, match="keep max_tokens at most 20"):
        model(**inputs)
    every = torch.arange(30)
    assert model.logits(every[None], every[None], Layout((Segment(0, 30),)), {}, {}, every).shape == (30, 61)


def test_gradient_checkpointing_keeps_the_layout(inputs):
    losses, gradients = [], []
    for checkpointing in (False, True):
        model = tiny_vlm(tiny_config("gemma2"), attention.NAME).train()
        if checkpointing:
            model.llm.gradient_checkpointing_enable()
        out = model(**inputs)
        out.loss.backward()
        losses.append(out.loss)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_text_only_model():
    model = tiny_vlm(tiny_config("llama"), attention.NAME)
    words = VLM(model.llm)
    (row,) = pack(shared([sample for sample in samples(0) if not sample.media]), 1000)
    inputs = collate(row, pixels).model_inputs()
    assert words(**inputs).loss == model(**inputs).loss
