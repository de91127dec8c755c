"""Where weights come from: what is at hand without a network."""

import json
from pathlib import Path

import pytest

from medmvl.model.config import ModelConfig
from medmvl.model.source import at_hand

NAME = "someone/model"


def fill(cache: Path, *files: str, name: str = NAME) -> Path:
    """Lay out a hub cache as huggingface_hub does; return the folder of the snapshot."""
    held = cache / f"models--{name.replace('/', '--')}"
    snapshot = held / "snapshots" / "abc"
    for folder in (held / "blobs", held / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (held / "refs" / "main").write_text("abc")
    for file in files:
        (held / "blobs" / file).write_bytes(b"{}")
        (snapshot / file).symlink_to(Path("../../blobs") / file)
    return snapshot


@pytest.mark.parametrize(
    ("files", "there"),
    [
        (("config.json", "model.safetensors"), True),
        (("pytorch_model.bin",), True),
        (("config.json", "tokenizer.json"), False),
        (("config.json", "training_args.bin"), False),
        (("config.json", "model-00001-of-00002.safetensors"), False),
    ],
)
def test_the_hub_cache_is_looked_up(files: tuple[str, ...], there: bool, tmp_path: Path) -> None:
    assert not at_hand(NAME, tmp_path)
    fill(tmp_path, *files)
    assert at_hand(NAME, tmp_path) is there


def test_every_shard_and_blob_is_needed(tmp_path: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    snapshot = fill(tmp_path, shards[0])
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not at_hand(NAME, tmp_path)
    fill(tmp_path, shards[1])
    assert at_hand(NAME, tmp_path)
    (snapshot.parent.parent / "blobs" / shards[1]).unlink()
    assert not at_hand(NAME, tmp_path)


def test_local_files_and_folders_are_at_hand_where_they_exist(tmp_path: Path) -> None:
    (tmp_path / "vit.bin").write_bytes(b"")
    assert at_hand(str(tmp_path)) and at_hand(f"{tmp_path}/vit.bin")
    assert not any(at_hand(name) for name in (f"{tmp_path}/none", "folder/none.safetensors", "./none", "none.pt"))


def test_a_model_names_all_weights_it_reads() -> None:
    inner = {"encoder": "a/2d", "encoder_options": {}}
    dual = {
        "volume": {"encoder": "vit3d", "encoder_options": {"weights": "a/3d"}},
        "slices": inner,
        "text": {"path": "a/text"},
    }
    for encoder, options, found in (
        ("slices", inner, ["a/2d"]),
        ("slices", {"encoder": "image"}, []),
        ("dual", dual, ["a/3d", "a/2d", "a/text"]),
        ("ct_vit", {"weights": "ct.pt"}, ["ct.pt"]),
        ("vit3d", {}, []),
        ("my.package:Encoder", {}, []),
        ("a/llm", {}, []),
        ({"architecture": {"model_type": "vit"}}, {}, []),
    ):
        volume = {"encoder": encoder, "encoder_options": options}
        assert ModelConfig(llm="a/llm", towers={"volume": volume}).weights == ["a/llm", *found]
