"""What the speed benches work on: two sizes of model, and random data in the proportions of well-known sets.

Words, pixels and weights are random, lengths are real: speed and memory depend on nothing else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from medmvl.bundle import Bundle
from medmvl.core.schema import Sample
from medmvl.processing.tokenizer import ASSISTANT, CHAT_TEMPLATE, END, USER

SIDE, PATCH, SLICES, IMAGE_TOKENS = 256, 16, 32, 256
VOCABULARIES = {"small": 32_000, "wide": 151_936}
"""Size -> vocabulary; all else is the same: LLM 512 wide, 8 layers (31 M without its tied head), encoder 13 M."""


@dataclass(frozen=True)
class Shape:
    """Data in the proportions of a known set, as much of it as one optimizer step shows.

    Attributes:
        medium: "image", "volume", or None for text alone.
        questions: about each medium in turn, begun anew at the end.
        asked, answered: fewest and most tokens of a question (its two role marks included) and of an answer (its end
            mark included), drawn evenly.
        media: media of one optimizer step; of text alone, its samples.
        image_tokens: that a medium becomes; 64, 256 or 1024 for images, any number for volumes.
        slices: of a volume.
    """

    medium: str | None
    questions: tuple[int, ...]
    asked: tuple[int, int]
    answered: tuple[int, int]
    media: int
    image_tokens: int = IMAGE_TOKENS
    slices: int = SLICES

    @property
    def samples(self) -> int:
        """Samples of one optimizer step."""
        return sum(islice(cycle(self.questions), self.media))

    def grouped(self, largest: int) -> "Shape":
        """Return the same number of samples in groups of at most `largest`, as training with that setting shows them.

        The groups of an image come at different times, so each counts as an image of its own.
        """
        parts = [part for size in self.questions for part in _evenly(size, largest)]
        media = 0
        while sum(islice(cycle(parts), media)) < self.samples:
            media += 1
        return replace(self, questions=tuple(parts), media=media)


_VQA = {"asked": (20, 40), "answered": (10, 20)}
SHAPES = {
    "slake": Shape("image", (22,), **_VQA, media=2),
    "pathvqa": Shape("image", (7, 6, 7, 6, 7), **_VQA, media=5),
    "ct_rate": Shape("volume", (30,), **_VQA, media=1),
    "captions": Shape("image", (1,), asked=(6, 12), answered=(40, 62), media=16),
    "text": Shape(None, (1,), asked=(20, 60), answered=(40, 120), media=32),
}


def build_bundle(size: str, shape: Shape, folder: Path, seed: int = 0) -> Bundle:
    """Return a model of a size that takes the media of a shape, with random weights and a tokenizer of whole words."""
    llm = {
        "model_type": "qwen2",
        "vocab_size": VOCABULARIES[size],
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    }
    towers = {} if shape.medium is None else {shape.medium: _tower(shape)}
    torch.manual_seed(seed)
    settings = {"llm": {"architecture": llm, "tokenizer": str(_tokenizer(size, folder))}, "towers": towers}
    return Bundle.build(settings, max_tokens=16_384)


def _tower(shape: Shape) -> dict[str, object]:
    is_volume = shape.medium == "volume"
    patch = PATCH if is_volume else round(SIDE / shape.image_tokens**0.5)
    encoder = {
        "architecture": {
            "model_type": "siglip_vision_model",
            "hidden_size": 384,
            "intermediate_size": 2048,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "image_size": SIDE,
            "patch_size": patch,
            "vision_use_head": False,
        }
    }
    if not is_volume:
        return {"encoder": encoder, "connector": "mlp"}
    return {
        "encoder": "slices",
        "options": {"encoder": encoder, "slices": shape.slices},
        "connector": "attention",
        "connector_options": {"queries": shape.image_tokens, "heads": 6},
    }


def _tokenizer(size: str, folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = folder / f"tokenizer-{size}"
    if not path.is_dir():
        marks = ["<|pad|>", "<|unknown|>", USER, ASSISTANT, END, "<image>", "<image3d>"]
        words = [f"w{number}" for number in range(VOCABULARIES[size] - len(marks))]
        core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(marks + words)}, unk_token=marks[1]))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        core.add_special_tokens(marks)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=marks[0])
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(path)
    return path


def write_samples(shape: Shape, folder: Path, seed: int = 0) -> list[list[Sample]]:
    """Write the media of one optimizer step and return the samples about each."""
    rng = np.random.default_rng(seed)
    words = VOCABULARIES["small"] // 2
    found = []
    for medium, questions in enumerate(islice(cycle(shape.questions), shape.media)):
        shown = [] if shape.medium is None else [{"type": shape.medium, "path": _write(shape, folder, medium, rng)}]
        group = []
        for number in range(questions):
            asked, answered = (
                " ".join(f"w{i}" for i in rng.integers(0, words, rng.integers(low, high + 1) - marks))
                for (low, high), marks in ((shape.asked, 2), (shape.answered, 1))
            )
            messages = [
                {"role": "user", "content": [*shown, {"type": "text", "text": asked}]},
                {"role": "assistant", "content": [{"type": "text", "text": answered}]},
            ]
            group.append(Sample.from_dict({"id": f"{seed}-{medium}-{number}", "messages": messages}, root=folder))
        found.append(group)
    return found


def conversations(groups: Sequence[Sequence[Sample]]) -> Iterator[Sample]:
    """Yield all that is asked about a medium as one conversation, the medium shown once."""
    for group in groups:
        turns = [message for sample in group for message in sample.messages]
        told = [turns[0], *(turn.model_copy(update={"content": turn.content[-1:]}) for turn in turns[1:])]
        yield group[0].model_copy(update={"messages": tuple(told)})


def _write(shape: Shape, folder: Path, number: int, rng: np.random.Generator) -> str:
    """Write a picture or volume of smooth noise, of the size that the encoder wants; return its name."""
    if shape.medium == "image":
        from PIL import Image

        path = folder / f"image-{number}.png"
        noise = rng.integers(0, 255, (SIDE // 8, SIDE // 8, 3), np.uint8)
        Image.fromarray(noise).resize((SIDE, SIDE)).save(path)
        return path.name
    import SimpleITK as sitk

    path = folder / f"volume-{shape.slices}-{number}.nii.gz"
    noise = rng.integers(-1000, 1000, (shape.slices, SIDE // 8, SIDE // 8)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(noise.repeat(8, 1).repeat(8, 2)), str(path))
    return path.name


def _evenly(count: int, largest: int) -> list[int]:
    """Cut a number into parts of at most `largest` that differ by one at most, as the mixture cuts groups."""
    parts = -(-count // largest)
    return [count // parts + (index < count % parts) for index in range(parts)]
