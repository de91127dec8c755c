"""Which token comes next."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medmvl.processing.processor import Processor


class Chooser:
    """Chooses the next token of each prompt; what it chooses depends on that prompt alone.

    Args:
        processor: says which ids never belong in an answer.
        temperature: 0 takes the likeliest token; above 0 samples.
        top_p: when sampling, only from the likeliest tokens that hold this much probability together.
        seed: of the sampling. Each prompt draws from its own stream, made from the seed and its id.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(self, processor: Processor, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
            raise ValueError(f"temperature must be 0 or more, top_p in (0, 1], got {temperature} and {top_p}")
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        # Placeholders stand for media, and rows beyond the tokenizer (tables are padded) stand for nothing.
        self.known = len(processor.tokenizer)
        self.placeholders = [token for token in sorted(processor.placeholder_ids.values()) if token < self.known]

    def stream(self, name: str) -> np.random.Generator:
        """Return what the draws of one prompt come from."""
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "big"))

    def __call__(self, logits: Tensor, streams: Sequence[np.random.Generator]) -> list[int]:
        """Return the token chosen for each row of logits [B, vocabulary], which are overwritten."""
        logits = logits[:, : self.known].float()
        logits[:, [token for token in self.placeholders if token < logits.shape[1]]] = -torch.inf
        if self.temperature == 0:
            return logits.argmax(dim=-1).tolist()
        chances, order = torch.softmax(logits.double() / self.temperature, dim=-1).sort(
            dim=-1, descending=True, stable=True
        )
        mass = chances.cumsum(dim=-1)
        kept = (mass - chances < self.top_p).sum(dim=-1, keepdim=True)
        draws = torch.tensor([stream.random() for stream in streams], dtype=mass.dtype)
        targets = draws[:, None].to(mass.device) * mass.gather(1, kept - 1)
        place = torch.searchsorted(mass, targets, right=True).minimum(kept - 1)
        return order.gather(1, place)[:, 0].tolist()
