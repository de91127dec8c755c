"""A processor's fingerprint changes with whatever changes token counts, and with nothing else."""

from pathlib import Path

from medmvl.imaging.spec import VisionSpec
from medmvl.processing.processor import Processor, TowerInput
from medmvl.processing.tokenizer import train_tokenizer

TEXTS = ["the left lung is clear", "a nodule of the right lung"]


def _made(texts: list[str], folder: Path, template: str = "plain", tokens: int = 4, limit: int = 99) -> str:
    spec = VisionSpec(size=(16, 16))
    towers = {"image": TowerInput("<image>", "image", tokens, spec)}
    return Processor(train_tokenizer(texts, 300, folder), template, towers, max_tokens=limit).fingerprint()


def test_it_follows_what_counts_depend_on(tmp_path: Path) -> None:
    same = _made(TEXTS, tmp_path / "a")
    assert same == _made(TEXTS, tmp_path / "b")
    changed = [
        _made([*TEXTS, "zebra zebra"], tmp_path / "c"),
        _made(TEXTS, tmp_path / "d", template="vicuna"),
        _made(TEXTS, tmp_path / "e", tokens=5),
        _made(TEXTS, tmp_path / "f", limit=100),
    ]
    assert len({same, *changed}) == 5
