"""What the commands work on: a small annotated data set, and a recipe of a small model for it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images/, annotations.json (the reference's form), a tokenizer and recipe.yaml."""
    from medmvl.processing.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("work")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        name, colour = list(COLOURS.items())[number % 3]
        pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (64, 64, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": name}]
        rows.append({"id": f"s{number}", "image": [f"{number}.png"], "conversations": turns, "task": "colour"})
    (folder / "annotations.json").write_text(json.dumps(rows))
    texts = [turn["value"] for row in rows for turn in row["conversations"]]  # type: ignore[index, union-attr]
    train_tokenizer(texts, 300, folder / "tokenizer")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder


RECIPE = """\
model:
  llm:
    architecture: {{model_type: qwen2, vocab_size: 304, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
      num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 256}}
    tokenizer: {folder}/tokenizer
  towers:
    image: {{encoder: conv}}
stages:
  - name: only
    steps: 3
    global_batch: 4
    data: [{{source: colours}}]
    tune: {{"*": {{mode: full, lr: 1e-3}}}}
run: {{output: {folder}/run, strategy: single, precision: fp32, max_tokens: 256, workers: 0, trackers: [],
  data_roots: ["{folder}/data", "{folder}/images"]}}
"""
