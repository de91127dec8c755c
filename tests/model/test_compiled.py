"""Compiled blocks learn what plain ones do, and rows of other lengths do not compile them anew."""

import copy
import shutil

import pytest
import torch

from medmvl.model import attention
from medmvl.model.compiled import compile_blocks
from medmvl.processing.collate import collate
from medmvl.processing.pack import pack, shared
from tiny_vlm import pixels, samples, tiny_config, tiny_vlm


@pytest.fixture
def restored():
    yield
    torch._dynamo.reset()
    attention.AttentionInterface.register(attention.NAME, attention.packed_attention)


@pytest.mark.usefixtures("restored")
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_learn_the_same_from_rows_of_any_length():
    plain = tiny_vlm(tiny_config("qwen2"), attention.NAME).train()
    compiled = copy.deepcopy(plain)
    assert compile_blocks(compiled) == plain.llm.config.num_hidden_layers
    assert list(compiled.state_dict()) == list(plain.state_dict())
    torch._dynamo.utils.counters.clear()
    seen = []
    for number, length in enumerate((1000, 90, 120, 60)):
        row = pack(shared(samples(number)), length)[0]
        inputs = collate(row, pixels).model_inputs()
        losses = []
        for model in (plain, compiled):
            model.zero_grad()
            loss = model(**inputs).loss
            loss.backward()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses)
        for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            away = (one.grad - other.grad).norm() / one.grad.norm().clamp(min=1e-6)
            assert away < 1e-5, name
        seen.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert seen[0] > 0
    assert seen[-1] == seen[1]  # the second row may teach that lengths vary, no later one teaches anything
