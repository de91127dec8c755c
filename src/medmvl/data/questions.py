"""Question pools: the wordings in which a task is asked, as data that ships, and one drawn for every sample."""

from __future__ import annotations

import hashlib
from functools import cache

from medmvl.core import shipped
from medmvl.core.config import read_yaml
from medmvl.core.lookup import choices_text


@cache
def pool(name: str) -> tuple[str, ...]:
    """Return the wordings of a shipped pool (`data/pools/NAME.yaml`); the first is the one to evaluate with.

    Raises:
        ValueError: there is no pool of this name; names all.
    """
    path = shipped.path("data/pools", name, ".yaml")
    if path is None:
        raise ValueError(f"no pool of questions {name!r}; {choices_text(name, shipped.names('data/pools', '.yaml'))}")
    data, _ = read_yaml(path)
    return tuple(data["questions"])


def draw(name: str, key: str, split: str) -> str:
    """Return the wording of one sample: by its `key` from the pool for training, else the pool's first.

    The same key always gives the same wording, whatever else is converted beside it.
    """
    wordings = pool(name)
    if split != "train":
        return wordings[0]
    return wordings[int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) % len(wordings)]
