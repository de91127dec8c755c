"""Tiny vision-language models with random weights, and samples of random tokens for them."""

import copy
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from medmvl.model import families
from medmvl.model.vlm import VLM, Tower
from medmvl.processing.encoded import IGNORE, Branch, Encoded

VOCABULARY, TOKEN, TOKENS = 61, 999, 4  # a placeholder beyond the embedding rows, which stands for 4 tokens
WINDOWED = ["full_attention", "sliding_attention"]
NEEDED = {  # what some families' configs leave open
    "deepseek_v2": {"num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "ministral": {"head_dim": 8, "layer_types": WINDOWED},
}


def tiny_config(family, changes=None):
    changes = {**NEEDED.get(family, {}), **(changes or {})}
    return families.tiny(AutoConfig.for_model(family), **{"initializer_range": 0.2, **changes})


def tiny_vlm(config, implementation, seed=0):
    torch.manual_seed(seed)
    llm = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), dtype=torch.float32, attn_implementation=implementation
    )
    connector = nn.Linear(6, config.hidden_size)
    connector.num_tokens = TOKENS
    return VLM(llm, {"image": Tower(nn.Tanh(), connector, "<image>")}).eval()


def samples(seed):
    """Text-only, one-image, two-image and multi-turn samples, several about the same images."""
    rng = np.random.default_rng(seed)
    media = {
        key: SimpleNamespace(tower="image", key=key, token=TOKEN, num_tokens=TOKENS, question=None, kept=None)
        for key in "abc"
    }

    def words(count):
        return rng.integers(3, VOCABULARY, count).tolist()

    header, found = words(3), []
    for number, (keys, turns) in enumerate(
        [("a", 1), ("a", 2), ("a", 1), ("", 1), ("bc", 1), ("bc", 2), ("c", 1), ("", 3), ("a", 1)]
    ):
        ids = list(header)
        for key in keys:
            ids += [TOKEN] * media[key].num_tokens
        labels = [IGNORE] * len(ids)
        for _ in range(turns):
            question, answer = words(rng.integers(1, 5)), words(rng.integers(1, 9))
            ids += question + answer
            labels += [IGNORE] * len(question) + answer
        branch = Branch(np.array(ids, np.int32), np.array(labels, np.int32), len(keys))
        found.append(Encoded(str(number), (branch,), tuple(media[key] for key in keys), None))
    return found


def pixels(medium):
    return np.random.default_rng(ord(medium.key)).standard_normal((TOKENS, 6)).astype(np.float32)
