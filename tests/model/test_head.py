"""Losses in chunks against the LLM's own forward with all logits at once: value, gradients, and what is in memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from medmvl.core.layout import Layout, Segment
from medmvl.model import attention, head
from medmvl.model.vlm import VLM
from tiny_vlm import VOCABULARY, tiny_config

TOKENS = 14
AT = torch.tensor([3, 4, 4, 7, 9, 10, 13])
HEADS = {  # what follows the body in families that do more than one matrix product
    "plain": ("qwen2", {}),
    "tied": ("qwen2", {"tie_word_embeddings": True}),
    "bias": ("phi", {}),
    "softcap": ("gemma2", {"final_logit_softcapping": 0.5}),
    "softcap-nanochat": ("nanochat", {}),
    "scaled": ("cohere", {"logit_scale": 3.0}),
    "divided": ("granite", {"logits_scaling": 5.0}),
    "scaled-before": ("minicpm3", {"dim_model_base": 8}),
    "decoder-inside": ("opt", {}),
    "transformer": ("gpt2", {}),
}


def build(family, changes, implementation=attention.NAME):
    torch.manual_seed(0)
    config = tiny_config(family, changes)
    llm = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=implementation)
    return VLM(llm).eval()


def row():
    torch.manual_seed(1)
    ids, targets = torch.randint(3, VOCABULARY, (1, TOKENS)), torch.randint(3, VOCABULARY, (len(AT),))
    steps = torch.arange(TOKENS)[None]
    return {
        "ids": ids,
        "positions": steps,
        "layout": Layout((Segment(0, TOKENS),)),
        "pixels": {},
        "media_positions": {},
        "logit_index": AT,
        "targets": targets,
    }


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def expected(model, inputs, factor):
    """The LLM's own forward on ids, all logits, torch's own cross-entropy."""
    logits = model.llm(input_ids=inputs["ids"], use_cache=False).logits[0, AT].float()
    each = F.cross_entropy(logits, inputs["targets"], reduction="none")
    (each.sum() * factor).backward()
    return each.detach(), gradients(model)


@pytest.fixture(autouse=True)
def three_tokens_a_chunk(monkeypatch):
    monkeypatch.setattr(head, "_CHUNK_BYTES", 3 * 4 * VOCABULARY)


@pytest.mark.parametrize(("family", "changes"), HEADS.values(), ids=HEADS)
def test_chunks_equal_all_logits_at_once(family, changes):
    model, inputs = build(family, changes), row()
    each, wanted = expected(model, inputs, 0.3 / 7)
    out = model(**inputs, normalizer=7)
    (out.loss * 0.3).backward()
    torch.testing.assert_close(out.token_losses, each)
    torch.testing.assert_close(out.loss, each.sum() / 7)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=lambda text, name=name: name + text)


def test_an_llm_that_is_not_packed_has_the_same_losses():
    model, inputs = build("stablelm", {}, "eager"), row()
    each, wanted = expected(model, inputs, 1.0)
    out = model(**inputs)
    out.loss.backward()
    torch.testing.assert_close(out.token_losses, each)
    torch.testing.assert_close(gradients(model), wanted)


@pytest.mark.parametrize("frozen", ["head", "body"])
def test_what_is_frozen_gets_no_gradient(frozen):
    model, inputs = build("phi", {}), row()
    _, wanted = expected(model, inputs, 1.0)
    part = model.llm.lm_head if frozen == "head" else model.llm.model
    part.requires_grad_(False)
    model(**inputs).loss.backward()
    found = gradients(model)
    assert found
    assert all(name.startswith("llm.lm_head") == (frozen == "body") for name in found)
    torch.testing.assert_close(found, {name: wanted[name] for name in found})


def test_bf16_autocast_follows_what_autocast_does_to_the_whole():
    model, inputs = build("gemma2", {"final_logit_softcapping": 5.0}), row()
    with torch.autocast("cpu", torch.bfloat16):
        each, wanted = expected(model, inputs, 1.0)
        out = model(**inputs)
    out.loss.backward()
    assert out.token_losses.dtype == torch.float32
    torch.testing.assert_close(out.token_losses, each, rtol=2e-2, atol=2e-2)
    for name, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32
        assert (gradient - wanted[name]).norm() <= 3e-2 * wanted[name].norm(), name


def test_a_loss_is_differentiated_once():
    model = build("qwen2", {})
    out = model(**row())
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it anew"):
        out.loss.backward()


def test_without_gradients_none_are_computed():
    model, inputs = build("qwen2", {}), row()
    with torch.no_grad():
        out = model(**inputs)
    assert not out.loss.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).token_losses, out.token_losses)


class Largest(TorchDispatchMode):
    """Remembers the longest table of logits that any operation made; the head's own [width, vocabulary] is none."""

    def __init__(self, width):
        super().__init__()
        self.width, self.longest = width, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple) else (made,):
            if isinstance(one, torch.Tensor) and one.shape[-1:] == (VOCABULARY,) and one.shape[-2:-1] != (self.width,):
                self.longest = max(self.longest, one.numel() // VOCABULARY)
        return made


@pytest.mark.parametrize("learns", [True, False])
def test_no_more_than_a_chunk_of_logits_exists_at_a_time(learns):
    model, inputs = build("gemma2", {"final_logit_softcapping": 0.5}), row()
    with Largest(model.llm.config.hidden_size) as seen, torch.set_grad_enabled(learns):
        loss = model(**inputs).loss
        if learns:
            loss.backward()
    assert seen.longest == 3
