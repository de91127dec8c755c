"""A real bundle under evaluation, untrained and tiny."""

import shutil
from pathlib import Path

import torch

import medmvl
from chat_families import tokenizer_of
from medmvl.core.config import dump_yaml
from paper_model import write_store

TASKS = [f"brain_atlas/{family}" for family in ("side", "reg")]


def test_a_bundle_is_judged_and_a_missing_picture_is_listed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer_of("chatml").save_pretrained(tmp_path / "tokenizer")
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llm = {"model_type": "qwen2", "vocab_size": 512, "num_key_value_heads": 1, **width}
    encoder = {"model_type": "siglip_vision_model", "image_size": 64, "patch_size": 32, **width}
    bundle = medmvl.Bundle.build(
        {
            "llm": {"architecture": llm, "tokenizer": str(tmp_path / "tokenizer")},
            "towers": {"image": {"encoder": {"architecture": encoder}, "connector": "linear"}},
        }
    )
    samples = write_store(tmp_path / "brain_atlas", patients=3)
    first = medmvl.evaluate(bundle, TASKS, out=tmp_path / "out", roots=[tmp_path], resamples=10)
    assert {entry["n"] for entry in first["tasks"].values()} == {6}
    assert first["excluded"] == []
    assert first["provenance"]["model_hash"] == bundle.hash
    again = medmvl.evaluate(bundle, TASKS, roots=[tmp_path], resamples=10, batch_size=5)
    assert again["tasks"] == first["tasks"]

    # Saved with its recipe, it knows where its data lies.
    bundle.recipe = dump_yaml({"run": {"data_roots": [str(tmp_path)]}})
    for target in (bundle, bundle.save(tmp_path / "bundle")):
        assert medmvl.evaluate(target, TASKS, resamples=10)["tasks"] == first["tasks"]

    gone = Path(samples[0].media_key[0])
    shutil.move(gone, tmp_path / "elsewhere.png")
    left = medmvl.evaluate(bundle, TASKS, roots=[tmp_path], resamples=10)
    assert {entry["n"] for entry in left["tasks"].values()} == {5}
    lost = {(one["task"], one["id"]) for one in left["excluded"]}
    assert lost == {(s.task, s.id) for s in samples if s.media_key[0] == str(gone) and s.task in TASKS}
    assert all(str(gone) in one["reason"] for one in left["excluded"])
