"""Tiny data sets on disk and recipes that train on them in seconds: a bright square or cube, left or right."""

import copy
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from medmvl.core.schema import Sample
from medmvl.data.store import write_samples
from medmvl.processing.tokenizer import train_tokenizer

SIDE = 16
DEPTH = 4


def write_data(root, pictures=24, text_only=6):
    """Write a store `squares` under `root/data` and a tokenizer; return the samples."""
    root = Path(root)
    folder = root / "data" / "squares"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    samples = []
    for number in range(pictures):
        side, size = ("left", "right")[number % 2], ("small", "large")[number // 2 % 2]
        width = 3 if size == "small" else 6
        x0 = int(rng.integers(0, 2)) + (0 if side == "left" else SIDE - width - 1)
        y0 = int(rng.integers(0, SIDE - width))
        grey = rng.integers(0, 60, (SIDE, SIDE)).astype(np.uint8)
        grey[y0 : y0 + width, x0 : x0 + width] = 220
        path = folder / "images" / f"{number}.png"
        Image.fromarray(grey).save(path)
        split = "val" if number % 6 == 5 else "train"
        meta = {"attributes": {"side": side, "size": size, "shape": "none" if number % 3 else "square"}}
        box = {"media": 0, "coords": [x0, y0, x0 + width, y0 + width], "label": "square"}
        asked = [
            ("side", "Which side?", [{"type": "text", "text": side}], {}),
            ("size", "Which size?", [{"type": "text", "text": size}], {}),
            ("report", "Describe it.", [{"type": "text", "text": f"A {size} square on the {side} side."}], {}),
            ("rec", "Where is it?", [{"type": "box", "box": 0}], {"boxes": [box]}),
        ]
        for task, question, answer, more in asked:
            content = [{"type": "image", "path": str(path)}, {"type": "text", "text": question}]
            samples.append(
                {
                    "id": f"{number}-{task}",
                    "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
                    "task": f"squares/{task}",
                    "split": split,
                    "meta": {**meta, **more},
                }
            )
    for number in range(text_only):
        content = [{"type": "text", "text": f"Say the number {number} in words."}]
        answer = [{"type": "text", "text": f"It is number {number}, and it has no picture at all."}]
        samples.append(
            {
                "id": f"text-{number}",
                "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
                "task": "squares/text",
                "split": "train",
            }
        )
    written = [Sample.from_dict(one, root=folder) for one in samples]
    write_samples(folder, written, name="squares", version="1", licence="none")
    texts = [
        part["text"] for one in samples for message in one["messages"] for part in message["content"] if "text" in part
    ]
    train_tokenizer(texts, 320, root / "tokenizer")
    return written


def write_volumes(root, volumes=12):
    """Write a store `cubes` under `root/data`, some samples with a picture of `squares` beside; return the samples."""
    root = Path(root)
    folder = root / "data" / "cubes"
    (folder / "volumes").mkdir(parents=True)
    rng = np.random.default_rng(1)
    samples = []
    for number in range(volumes):
        side = ("left", "right")[number % 2]
        array = rng.integers(0, 60, (DEPTH + 2, SIDE + 4, SIDE)).astype(np.int16)
        z0, y0, x0 = rng.integers(0, [3, SIDE - 4, 4])
        x0 += SIDE // 2 if side == "left" else 0  # columns grow to the patient's left
        array[z0 : z0 + 3, y0 : y0 + 5, x0 : x0 + 4] = 220
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((1.5, 1.5, 4.0))
        path = folder / "volumes" / f"{number}.nii.gz"
        sitk.WriteImage(sitk.DICOMOrient(image, ("LPS", "RAI", "SPL")[number % 3]), str(path))
        volume, picture = {"type": "volume", "path": str(path)}, root / "data" / "squares" / "images" / f"{number}.png"
        asked = [("side", "Which side?", side), ("report", "Describe it.", f"A cube on the {side} side.")]
        for task, question, answer in asked:
            content = [volume, {"type": "text", "text": question}]
            if task == "report" and number % 3 == 0:
                content = [{"type": "image", "path": str(picture)}, *content]
            samples.append(
                {
                    "id": f"cube-{number}-{task}",
                    "messages": [
                        {"role": "user", "content": content},
                        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
                    ],
                    "task": f"cubes/{task}",
                    "split": "val" if number % 6 == 5 else "train",
                }
            )
    written = [Sample.from_dict(one, root=root / "data") for one in samples]
    write_samples(folder, written, name="cubes", version="1", licence="none")
    return written


def model(root, volumes=False, **llm):
    """Return model settings: a two-layer LLM and a tiny convolutional encoder, the same over slices for volumes."""
    architecture = {
        "model_type": "qwen2",
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        **llm,
    }
    conv = {"channels": [8, 8, 8], "image_size": SIDE}
    towers = {"image": {"encoder": "conv", "encoder_options": conv, "connector": "mlp"}}
    if volumes:
        towers["volume"] = {
            "encoder": "slices",
            "encoder_options": {"encoder": "conv", "encoder_options": conv, "slices": DEPTH, "chunk": 3},
            "connector": "attention",
            "connector_options": {"queries": 6, "heads": 2, "positions": "slices"},
        }
    return {"llm": {"architecture": architecture, "tokenizer": str(Path(root) / "tokenizer")}, "towers": towers}


FULL = {"llm": {"mode": "full", "lr": 3e-3}, "image.*": {"mode": "full", "lr": 3e-3}}


def stage(name="chat", **changes):
    """Return the settings of a stage that trains everything."""
    settings = {"name": name, "global_batch": 8, "data": [{"source": "squares"}], "tune": FULL, "steps": 4}
    return settings | changes


def recipe(root, *stages, volumes=False, **run):
    """Return a whole recipe."""
    root = Path(root)
    settings = {
        "output": str(root / "run"),
        "max_tokens": 128,
        "row_tokens": 256,
        "workers": 0,
        "log_every": 1,
        "save_every": 100,
        "trackers": [],
        "strategy": "single",
        "precision": "fp32",
        "data_roots": [str(root / "data")],
        "prepared": str(root / "prepared"),
        "features": None,
        **run,
    }
    return {"model": model(root, volumes), "stages": copy.deepcopy(list(stages)) or [stage()], "run": settings}


def write_recipe(root, *stages, **run):
    """Write a recipe as a file (JSON is YAML); return its path."""
    path = Path(root) / "recipe.yaml"
    path.write_text(json.dumps(recipe(root, *stages, **run)), encoding="utf-8")
    return path
