"""The public object: build, save, load, ask, and what a damaged or unknown directory answers."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import medmvl
from chat_families import tokenizer_of
from medmvl.bundle import BundleError, read_config
from medmvl.core.atomic import DiskFullError
from medmvl.core.boxes import BoxFormat
from medmvl.core.schema import SampleError
from medmvl.infer import engine
from medmvl.model import tune
from medmvl.model.config import TuneRule

WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
LLM = {"model_type": "qwen2", "vocab_size": 512, "num_key_value_heads": 1, **WIDTH}
PICTURE = {"image_size": 32, "patch_size": 8, **WIDTH}
ENCODERS = {
    "siglip": {"encoder": {"architecture": {"model_type": "siglip_vision_model", **PICTURE}}},
    "clip": {
        "encoder": {"architecture": {"model_type": "clip_vision_model", **PICTURE}},
        "layer": -2,
        "tokens": "patches",
    },
    "conv": {"encoder": "conv", "encoder_options": {"channels": [8, 16, 16], "image_size": 32}},
}
CONNECTORS = {
    "linear": {},
    "mlp": {"depth": 3},
    "pool": {"size": 2},
    "attention": {"queries": 3, "heads": 2},
    "perceiver": {"latents": 3, "depth": 1, "heads": 2},
}


def make(folder: Path, encoder: str = "siglip", connector: str = "mlp", llm: dict | None = None) -> medmvl.Bundle:
    torch.manual_seed(0)
    tokenizer_of("chatml").save_pretrained(folder / "tokenizer")
    tower = {**ENCODERS[encoder], "connector": connector, "connector_options": CONNECTORS[connector]}
    source = {"architecture": {**LLM, **(llm or {})}, "tokenizer": str(folder / "tokenizer")}
    return medmvl.Bundle.build({"llm": source, "towers": {"image": tower}})


def make_samples(folder: Path) -> list[medmvl.Sample]:
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 255, (40, 50), np.uint8)).save(folder / f"{name}.png")
    found = []
    for number, pictures in enumerate(["a", "a", "a", "b", "ab", ""]):
        content = [{"type": "image", "path": f"{name}.png"} for name in pictures]
        content.append({"type": "text", "text": f"Question number {number}?"})
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": f"The answer is {number}."}]
        if number == 2:
            messages += [{"role": "user", "content": "And why?"}, {"role": "assistant", "content": "So it is."}]
        found.append(medmvl.Sample.from_dict({"id": str(number), "messages": messages}, root=folder))
    return found


@pytest.mark.parametrize(
    ("encoder", "connector"), [*((name, "mlp") for name in ENCODERS), *(("siglip", name) for name in CONNECTORS)]
)
def test_saved_and_loaded_gives_the_same_logits(tmp_path: Path, encoder: str, connector: str) -> None:
    bundle, samples = make(tmp_path, encoder, connector), make_samples(tmp_path)
    bundle.save(tmp_path / "bundle")
    (tmp_path / "tokenizer").rename(tmp_path / "gone")  # a bundle needs nothing but itself
    again = medmvl.load(tmp_path / "bundle")
    for sample in samples:
        assert torch.equal(bundle.logits(sample), again.logits(sample))
    assert again.hash == bundle.hash
    assert again.generate(samples, max_new_tokens=4) == bundle.generate(samples, max_new_tokens=4)


def test_boxes_are_written_as_the_model_says(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert made.processor.box_format == BoxFormat(100)
    config = made.config.model_dump(mode="json")
    config["llm"]["tokenizer"] = str(tmp_path / "tokenizer")
    medmvl.Bundle.build({**config, "boxes": "unimed"}).save(tmp_path / "bundle")
    again = medmvl.load(tmp_path / "bundle")
    assert again.config.boxes == "unimed" and again.processor.box_format == BoxFormat(100, "unimed")


def test_tied_embeddings_and_adapters_survive(tmp_path: Path) -> None:
    bundle, samples = make(tmp_path, llm={"tie_word_embeddings": True}), make_samples(tmp_path)
    rule = TuneRule(mode="lora", rank=2, lr=1e-3)
    table = tune.apply(bundle.model, {"llm": rule, "image.encoder": rule})
    for group in table.groups:
        for parameter in group["params"]:
            torch.nn.init.normal_(parameter, std=0.1)
    again = medmvl.load(bundle.save(tmp_path / "bundle"))
    assert torch.equal(bundle.logits(samples[4]), again.logits(samples[4]))
    assert again.model.llm.lm_head.weight.data_ptr() == again.model.llm.get_input_embeddings().weight.data_ptr()
    assert tune.adapters(again.model) == tune.adapters(bundle.model)


def test_weights_that_were_shared_by_hand_survive(tmp_path: Path) -> None:
    bundle, samples = make(tmp_path), make_samples(tmp_path)
    bundle.model.llm.lm_head.weight = bundle.model.llm.get_input_embeddings().weight
    again = medmvl.load(bundle.save(tmp_path / "bundle"))
    assert torch.equal(bundle.logits(samples[0]), again.logits(samples[0]))


def test_packed_loss_and_gradients_equal_unpacked(tmp_path: Path) -> None:
    bundle, samples = make(tmp_path), make_samples(tmp_path)
    gradients = []
    losses = []
    for packed in (True, False):
        bundle.model.zero_grad()
        loss = bundle.loss(samples, packed=packed)
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad.clone() for n, p in bundle.model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    whole = torch.cat([g.flatten() for g in gradients[1].values()]).norm()
    for name, gradient in gradients[1].items():
        assert (gradients[0][name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-3 * whole), name


def test_same_text_at_any_batch_size_and_streamed(tmp_path: Path) -> None:
    bundle, samples = make(tmp_path), make_samples(tmp_path)
    whole = bundle.generate(samples, max_new_tokens=12)
    assert whole == bundle.generate(samples, max_new_tokens=12, batch_size=1)
    assert whole == ["".join(bundle.stream(sample, max_new_tokens=12)) for sample in samples]
    drawn = bundle.generate(samples, max_new_tokens=12, temperature=1.5, seed=3)
    assert drawn == bundle.generate(samples, max_new_tokens=12, temperature=1.5, seed=3, batch_size=2)
    assert drawn != bundle.generate(samples, max_new_tokens=12, temperature=1.5, seed=4)


@pytest.mark.parametrize("family", ["inst_metaspace", "inst_legacy", "gemma", "chatml"])
def test_pieces_of_a_stream_join_to_the_answer(tmp_path: Path, family: str) -> None:
    """Runs of byte tokens, and halves of characters, change their reading until they are whole."""
    tokenizer_of(family).save_pretrained(tmp_path / "tokenizer")
    source = {"architecture": {**LLM, "vocab_size": len(tokenizer_of(family))}, "tokenizer": tmp_path / "tokenizer"}
    torch.manual_seed(0)
    bundle = medmvl.Bundle.build({"llm": source})
    sample = make_samples(tmp_path)[5]
    for seed in range(8):
        written = {"max_new_tokens": 12, "temperature": 2.0, "seed": seed}
        assert list(bundle.generate([sample], **written)) == ["".join(bundle.stream(sample, **written))]


def test_long_rope_loss_is_the_same_packed_and_unpacked(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    limits = {"original_max_position_embeddings": 70, "max_position_embeddings": 280}
    llm = {"model_type": "phi3", "pad_token_id": 0, "rope_parameters": {**rope, **limits}, **limits}
    bundle, samples = make(tmp_path, llm=llm), make_samples(tmp_path)
    lengths = [bundle.processor.encode(sample).num_tokens for sample in samples]
    assert min(lengths) <= 70 < max(lengths)
    assert bundle.loss(samples).item() == pytest.approx(bundle.loss(samples, packed=False).item(), abs=1e-5)


@pytest.mark.parametrize("llm", [{"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 100},
    {"model_type": "gpt_neo", "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 100,
     "attention_types": [[["global"], 2]]}])  # fmt: skip
def test_an_llm_with_a_table_of_positions_is_not_asked_for_more(tmp_path: Path, llm: dict) -> None:
    tokenizer_of("chatml").save_pretrained(tmp_path / "tokenizer")
    source = {"architecture": {"vocab_size": 512, **llm}, "tokenizer": tmp_path / "tokenizer"}
    settings = {"llm": source, "towers": {"image": ENCODERS["siglip"]}}
    torch.manual_seed(0)
    bundle, samples = medmvl.Bundle.build(settings), make_samples(tmp_path)
    assert bundle.processor.max_tokens == 100
    lengths = [len(bundle.processor.prompt(sample).branches[0].ids) for sample in samples]
    bundle.processor.stop_ids = ()
    answers = engine.generate(bundle.model, bundle.processor, [bundle.processor.prompt(s) for s in samples], 200)
    assert [len(answer) for answer in answers] == [101 - length for length in lengths]
    long = samples[0].to_dict()
    long["messages"][-1]["content"] = [{"type": "text", "text": "on and on " * 30}]
    with pytest.raises(SampleError, match="more than max_tokens 100"):
        bundle.loss([medmvl.Sample.from_dict(long)])
    with pytest.raises(ValueError, match="128 is more than the 100 positions"):
        medmvl.Bundle.build(settings, max_tokens=128)


def test_statistics_of_a_single_number_are_hashed(tmp_path: Path) -> None:
    bundle = make(tmp_path)
    bundle.model.towers["image"].encoder.register_buffer("batches", torch.tensor(1))
    first = bundle.hash
    bundle.model.towers["image"].encoder.batches += 1
    assert bundle.hash != first


def test_no_samples_have_no_loss(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        make(tmp_path).loss([])


def test_options_score_as_their_loss(tmp_path: Path) -> None:
    bundle, samples = make(tmp_path), make_samples(tmp_path)
    scores = bundle.score_options(samples[0], ["yes", "no lesion is seen"])
    for option, score in zip(["yes", "no lesion is seen"], scores, strict=True):
        asked = samples[0].to_dict()
        asked["messages"][-1]["content"] = [{"type": "text", "text": option}]
        sample = medmvl.Sample.from_dict(asked)
        with torch.no_grad():
            mean = bundle.loss([sample]).item()
        count = int((bundle.processor.encode(sample).branches[0].labels >= 0).sum())
        assert score == pytest.approx(-mean * count, abs=1e-4)


def test_options_of_many_samples_score_as_those_of_each(tmp_path: Path) -> None:
    bundle, samples = make(tmp_path), make_samples(tmp_path)
    options = [["yes", "no", f"lesion {number}"][: 1 + number % 3] for number in range(len(samples))]
    alone = [bundle.score_options(sample, own) for sample, own in zip(samples, options, strict=True)]
    for batch_size in (1, 3, 64):
        found = bundle.score_options_each(samples, options, batch_size)
        assert [pytest.approx(scores, rel=1e-5) for scores in found] == alone


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number"),
        ({"batch_size": None}, "batch_size must be a whole number"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_settings_of_answers_that_make_no_sense(tmp_path: Path, wrong: dict, said: str) -> None:
    bundle = make(tmp_path)
    with pytest.raises(ValueError, match=said):
        bundle.generate(make_samples(tmp_path), **wrong)


def test_what_is_no_list_of_samples_or_options(tmp_path: Path) -> None:
    bundle, samples = make(tmp_path), make_samples(tmp_path)
    with pytest.raises(TypeError, match="give a list of samples, got Sample"):
        bundle.generate(samples[0])
    with pytest.raises(TypeError, match=r"got dict; Sample\.from_dict"):
        bundle.generate([samples[0].model_dump()])
    with pytest.raises(ValueError, match="1 samples, 2 lists of options"):
        bundle.score_options_each(samples[:1], [["a"], ["b"]])
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        bundle.score_options_each(samples[:1], [["a"]], batch_size=0)
    with pytest.raises(ValueError, match="give a list of texts, got the text 'yes'"):
        bundle.score_options(samples[0], "yes")


def test_logits_count_the_expanded_image(tmp_path: Path) -> None:
    bundle, samples = make(tmp_path), make_samples(tmp_path)
    logits = bundle.logits(samples[4])
    text = [int(i) for i in bundle.processor.encode(samples[4]).branches[0].ids]
    assert logits.shape == (len(text), LLM["vocab_size"])
    assert sum(i == bundle.processor.placeholder_ids["image"] for i in text) == 2 * 16


def test_what_is_no_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        medmvl.load(tmp_path)
    path = make(tmp_path).save(tmp_path / "bundle")
    state = json.loads((path / "bundle.json").read_text())
    (path / "bundle.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(BundleError, match="format 99"):
        medmvl.load(path)
    named = json.loads(json.dumps(state))
    named["model"]["towers"]["image"]["connector"] = "evil.package:Connector"
    (path / "bundle.json").write_text(json.dumps(named))
    with pytest.raises(BundleError, match=r"evil\.package:Connector.*allow_code"):
        medmvl.load(path)
    with pytest.raises(BundleError, match="allow_code"):
        medmvl.load(path, allow_code="evil_twin")
    with pytest.raises(BundleError, match=r"evil\.package:Connector.*allow_code"):
        read_config(path)
    (path / "bundle.json").write_text(json.dumps(state))
    weights = next(path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BundleError, match="cannot be read"):
        medmvl.load(path)


def test_full_disk_keeps_the_former_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, samples = make(tmp_path), make_samples(tmp_path)
    path = bundle.save(tmp_path / "bundle")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("medmvl.bundle.save_torch_state_dict", full)
    with pytest.raises(DiskFullError, match="intact"):
        bundle.save(path)
    assert torch.equal(medmvl.load(path).logits(samples[0]), bundle.logits(samples[0]))


def test_bad_samples_are_named(tmp_path: Path) -> None:
    bundle, samples = make(tmp_path), make_samples(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:200])
    with pytest.raises(SampleError, match=r"'3'.*b\.png"):
        bundle.loss(samples)
    (tmp_path / "a.png").unlink()
    with pytest.raises(SampleError, match=r"'0'.*a\.png"):
        bundle.generate(samples[:1])
