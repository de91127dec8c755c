"""MedM-VL: train, evaluate, study and use 2D and 3D medical vision-language models.

The public names below are imported on use, so that `import medmvl` and the command line stay instant:
nothing heavy (torch, transformers) is loaded before it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.5.1"

if TYPE_CHECKING:
    from medmvl.bundle import Bundle, load
    from medmvl.core.schema import Sample
    from medmvl.eval.run import evaluate
    from medmvl.imaging.read import read_image
    from medmvl.train.recipe import Recipe
    from medmvl.train.run import train

_PUBLIC = {
    "Bundle": "medmvl.bundle",
    "load": "medmvl.bundle",
    "Sample": "medmvl.core.schema",
    "Recipe": "medmvl.train.recipe",
    "read_image": "medmvl.imaging.read",
    "train": "medmvl.train.run",
    "evaluate": "medmvl.eval.run",
}

__all__ = ["Bundle", "Recipe", "Sample", "evaluate", "load", "read_image", "train"]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'medmvl' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
