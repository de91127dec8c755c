"""torch.compile, block by block: encoders and LLM keep their names, weights, layouts and recomputation."""

import torch
from transformers import AttentionInterface

from medmvl.model import attention, tune
from medmvl.model.encoders.base import recomputable
from medmvl.model.vlm import VLM


def compile_blocks(model: VLM) -> int:
    """Let every transformer block be compiled when it first runs, for rows of any length; return their number.

    Attention itself stays as it is: it follows each row's layout, and has kernels of its own (see `backends.py`). The
    first step takes minutes on large models, the others are faster on GPUs.
    """
    from torch._inductor import config

    config.fallback_random = True  # drop out what uncompiled blocks would
    AttentionInterface.register(attention.NAME, torch.compiler.disable(attention.packed_attention))
    blocks = [block for part in tune.parts(model).values() for block in recomputable(part)]
    for block in blocks:
        block.compile(dynamic=True)
    return len(blocks)
