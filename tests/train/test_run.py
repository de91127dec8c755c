"""Whole runs on tiny models: what they leave behind, what stops them, what does not change what is learned."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file

import medmvl
import tiny_run
from medmvl.core.atomic import DiskFullError
from medmvl.core.schema import Sample
from medmvl.data.store import SampleStore
from medmvl.model import attention
from medmvl.processing.tokenizer import train_tokenizer
from medmvl.train.loop import NonFiniteError, RefusedError
from medmvl.train.run import train

LORA = {"mode": "lora", "lr": 1e-2, "rank": 2, "dropout": 0.0}
HEADS = {"image.encoder": {"mode": "full", "lr": 1e-2}}
VALIDATION = {"data": [{"source": "squares", "split": "val"}], "every": 2, "samples": 8}


@pytest.fixture
def root(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


def weights(folder):
    found = {}
    for file in sorted((folder / "bundle").glob("*.safetensors")):
        found |= load_file(file)
    return found


def log(folder, kind="train"):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def furthest(one, other):
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def test_run_folder_and_bundle(root, caplog):
    caplog.set_level(logging.INFO, logger="medmvl")
    logging.getLogger("medmvl").propagate = True
    stages = [
        tiny_run.stage("heads", objective="heads", tune=HEADS, steps=2),
        tiny_run.stage("align", tune={"image.connector": {"mode": "full", "lr": 1e-3}}, steps=2, template="plain"),
        tiny_run.stage("instruct", steps=3, validation=VALIDATION),
    ]
    folder = train(tiny_run.recipe(root, *stages, trackers=["tensorboard"]))
    names = {path.name for path in folder.iterdir()}
    assert names == {"recipe.yaml", "provenance.json", "log.jsonl", "checkpoints", "bundle", "tensorboard"}
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["data"]["squares:train"]["manifest"]["name"] == "squares"
    assert {"git", "versions", "device", "seed"} <= provenance.keys()
    first = log(folder)[0]
    expected = {"step", "stage", "loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s", "padding", "data_wait"}
    assert expected | {"memory_gib"} <= first.keys()
    assert "accuracy/side" in first
    assert set(first["lr"]) == {"image.encoder", "heads"}
    assert [row["stage"] for row in log(folder)] == ["heads"] * 2 + ["align"] * 2 + ["instruct"] * 3
    assert "image.connector  full" in caplog.text and "stage 2/3: align" in caplog.text
    assert str(folder / "bundle") in caplog.text
    bundle = medmvl.load(folder / "bundle")
    sample = SampleStore(root / "data/squares", "val")[0]
    assert isinstance(bundle.generate([sample], max_new_tokens=4)[0], str)
    assert train(folder / "recipe.yaml", [f"run.output={root / 'again'}"]).name == "again"  # runnable as it stands
    assert furthest(weights(folder), weights(root / "again")) == 0.0


def test_only_what_is_tuned_moves(root):
    stage = tiny_run.stage(tune={"image.connector": {"mode": "full", "lr": 1e-2}}, steps=2)
    folder = train(tiny_run.recipe(root, stage))
    torch.manual_seed(0)
    start = medmvl.Bundle.build(tiny_run.model(root)).model.state_dict()
    moved = {name for name, tensor in weights(folder).items() if not torch.equal(tensor, start[name])}
    assert moved == {name for name in start if name.startswith("towers.image.connector")}


def test_every_trained_part_gets_a_gradient_and_rows_do_not_change_it(root):
    """The loss is normalised by the step's supervised tokens: however rows are cut, the same is learned."""
    results = []
    for row_tokens, name in ((1024, "one"), (48, "many")):
        recipe = tiny_run.recipe(root, output=str(root / name), row_tokens=row_tokens, max_tokens=48)
        results.append(weights(train(recipe)))
        assert log(root / name)[0]["loss"] == pytest.approx(log(root / "one")[0]["loss"], abs=1e-5)
    assert furthest(*results) < 2e-5
    torch.manual_seed(0)
    start = medmvl.Bundle.build(tiny_run.model(root)).model.state_dict()
    assert all(not torch.equal(results[0][name], start[name]) for name in results[0])


def test_lora_then_full(root):
    stages = [
        tiny_run.stage("lora", tune={"llm": LORA, "image.*": {"mode": "full", "lr": 1e-3}}, steps=2),
        tiny_run.stage("frozen", tune={"image.connector": {"mode": "full", "lr": 1e-3}}, steps=2),
        tiny_run.stage("full", tune={"llm": {"mode": "full", "lr": 1e-3}}, steps=2),
    ]
    folder = train(tiny_run.recipe(root, *stages[:2], output=str(root / "adapted")))
    assert any("lora" in name for name in weights(folder))
    folder = train(tiny_run.recipe(root, *stages))
    assert not any("lora" in name for name in weights(folder))
    medmvl.load(folder / "bundle")


def test_starts_from_another_bundle(root):
    first = train(tiny_run.recipe(root, tiny_run.stage(steps=2), output=str(root / "first")))
    rule = {"image.connector": {"mode": "full", "lr": 1e-2}}
    recipe = tiny_run.recipe(root, tiny_run.stage(tune=rule, steps=1)) | {"init_from": str(first)}
    before = weights(first)
    for model in (recipe["model"], None):
        recipe["run"]["output"] = str(root / f"from-{model is None}")
        after = weights(train({key: value for key, value in (recipe | {"model": model}).items() if value}))
        moved = {name.split(".")[2] for name in before if not torch.equal(before[name], after[name])}
        assert moved == {"connector"}
    with pytest.raises(ValueError, match="no bundle"):
        train(recipe | {"init_from": str(root / "nothing")}, [f"run.output={root / 'x'}"])


def test_an_llm_goes_on_with_the_tokens_it_was_trained_on(root):
    stage = tiny_run.stage(steps=1)
    first = train(tiny_run.recipe(root, stage, output=str(root / "first")))
    recipe = tiny_run.recipe(root, stage) | {"init_from": str(first)}
    train_tokenizer(["other words than there were"] * 9, 320, root / "other")
    recipe["model"]["llm"]["tokenizer"] = str(root / "other")
    with pytest.raises(ValueError, match=r"another tokenizer .*set model\.llm\.tokenizer to .*first/bundle/processor"):
        train(recipe)
    recipe["model"]["llm"]["tokenizer"] = str(first / "bundle/processor")
    train(recipe)


def test_broken_samples_are_refused_listed_and_never_replaced(root):
    store = root / "data/squares"
    (store / "images/0.png").write_bytes(b"not a picture")
    (store / "images/1.png").unlink()
    stage = tiny_run.stage(epochs=1, steps=None, global_batch=4)
    with pytest.raises(RefusedError, match=r"max_refused 0\.01.*refused\.jsonl"):
        train(tiny_run.recipe(root, stage, max_refused=0.01, output=str(root / "strict")))
    folder = train(tiny_run.recipe(root, stage, max_refused=0.2))
    rows = [json.loads(line) for line in (folder / "refused.jsonl").read_text().splitlines()]
    broken = {f"{number}-{task}" for number in (0, 1) for task in ("side", "size", "report", "rec")}
    assert {row["sample_id"] for row in rows} == broken
    assert {row["path"] for row in rows} == {str(store / f"images/{number}.png") for number in (0, 1)}
    assert all(row["reason"] for row in rows)


def test_too_long_a_sample_is_refused_by_id(root):
    recipe = tiny_run.recipe(root, tiny_run.stage(epochs=1, steps=None), max_tokens=32, row_tokens=64, max_refused=0.5)
    rows = [json.loads(line) for line in (train(recipe) / "refused.jsonl").read_text().splitlines()]
    assert {row["sample_id"] for row in rows} == {f"text-{number}" for number in range(6)}
    assert "43 tokens" in rows[0]["reason"]


def test_text_only_stage_leaves_the_media_out(root):
    data = [{"source": "squares", "media": "drop", "tasks": ["squares/side", "squares/text"]}]
    stage = tiny_run.stage(data=data, tune={"llm": {"mode": "full", "lr": 1e-2}}, steps=3)
    for number in range(24):
        (root / f"data/squares/images/{number}.png").unlink()  # never opened
    folder = train(tiny_run.recipe(root, stage))
    assert not (folder / "refused.jsonl").exists()
    boxes = tiny_run.stage(data=[{"source": "squares/rec", "media": "drop"}], tune=stage["tune"])
    with pytest.raises(RefusedError, match="choose tasks without boxes"):
        train(tiny_run.recipe(root, boxes, output=str(root / "boxes")))


def test_loss_that_is_not_finite_stops_with_the_samples(root, monkeypatch):
    from medmvl.train import feed

    collate = feed.collate

    def poisoned(row, *arguments):
        batch = collate(row, *arguments)
        if "3-report" in row.sample_ids:
            batch.pixels["image"][:] = float("inf")
        return batch

    monkeypatch.setattr(feed, "collate", poisoned)
    stage = tiny_run.stage(data=[{"source": "squares/report"}], epochs=1, steps=None, global_batch=4)
    with pytest.raises(NonFiniteError, match="3-report"):
        train(tiny_run.recipe(root, stage, row_tokens=128))


def test_full_disk_while_saving_stops_and_a_resumed_run_goes_on(root, monkeypatch):
    whole = train(tiny_run.recipe(root, tiny_run.stage(steps=6), output=str(root / "whole")))
    from medmvl.train import checkpoint

    write, calls = checkpoint._write, []

    def full(path, tensors):
        calls.append(path)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        write(path, tensors)

    monkeypatch.setattr(checkpoint, "_write", full)
    recipe = tiny_run.recipe(root, tiny_run.stage(steps=6), save_every=2)
    with pytest.raises(DiskFullError, match="No space left"):
        train(recipe)
    monkeypatch.undo()
    assert [path.name for path in (root / "run/checkpoints").iterdir()] == ["step-00000002"]
    assert furthest(weights(train(recipe, resume=True)), weights(whole)) == 0.0


def test_a_run_that_never_began_may_be_mended(root):
    wrong = tiny_run.recipe(root)
    wrong["model"]["llm"]["architecture"]["model_type"] = "qwen22"
    with pytest.raises(ValueError, match="qwen22"):
        train(wrong)
    folder = train(tiny_run.recipe(root))
    assert "qwen22" not in (folder / "recipe.yaml").read_text()


def test_what_was_learned_before_a_bad_sample_is_saved(root, caplog):
    logging.getLogger("medmvl").propagate = True
    for number in range(24):
        if number % 6 == 5:
            (root / f"data/squares/images/{number}.png").write_bytes(b"not a picture")
    gone = {"data": [{"source": "squares", "split": "val"}], "every": 3, "samples": 8}
    recipe = tiny_run.recipe(root, tiny_run.stage(validation=gone, steps=6))
    with pytest.raises(RefusedError, match="no validation sample can be used"):
        train(recipe)
    assert [path.name for path in (root / "run/checkpoints").iterdir()] == ["step-00000003"]
    assert caplog.text.count("refused sample '") == 5
    assert "chat/validation: 8 samples refused; " in caplog.text


def test_steps_with_nothing_to_learn_log_no_loss(root):
    for path in (root / "data/squares/images").iterdir():
        path.write_bytes(b"not a picture")
    data = [{"source": "squares/side", "share": 3}, {"source": "squares/text", "share": 1}]
    folder = train(tiny_run.recipe(root, tiny_run.stage(data=data, global_batch=1, steps=8), max_refused=1.0))
    assert 1 <= len(log(folder)) < 8
    assert all(row["loss"] > 1 for row in log(folder))


def test_a_frozen_llm_recomputes_too(root, monkeypatch):
    """Its activations are kept for the connector's gradient, unless they are recomputed."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    calls, forward = [], Qwen2MLP.forward
    monkeypatch.setattr(Qwen2MLP, "forward", lambda self, x: calls.append(self.training) or forward(self, x))
    stage = tiny_run.stage(tune={"image.connector": {"mode": "full", "lr": 1e-3}}, steps=1)
    plain = train(tiny_run.recipe(root, stage, output=str(root / "plain")))
    once = len(calls)
    recomputed = train(tiny_run.recipe(root, stage, activation_checkpointing=["llm"]))
    assert len(calls) == 3 * once
    assert not any(calls)  # nothing in it drops out
    assert furthest(weights(plain), weights(recomputed)) < 1e-6


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_learn_the_same(root):
    plain = train(tiny_run.recipe(root, output=str(root / "plain")))
    try:
        compiled = train(tiny_run.recipe(root, compile=True, output=str(root / "compiled")))
    finally:
        torch._dynamo.reset()
        attention.AttentionInterface.register(attention.NAME, attention.packed_attention)
    assert furthest(weights(plain), weights(compiled)) < 1e-5


def test_best_checkpoint_stays(root):
    stage = tiny_run.stage(steps=8, validation=VALIDATION)
    folder = train(tiny_run.recipe(root, stage, keep_last=1))
    losses = {row["step"]: row["loss"] for row in log(folder, "validation")}
    assert list(losses) == [2, 4, 6, 8]
    best = json.loads((folder / "checkpoints/best.json").read_text())
    assert best == {"stage": 0, "step": min(losses, key=losses.get), "loss": min(losses.values())}
    assert (folder / f"checkpoints/step-{best['step']:08d}").is_dir()


def test_further_validation_sees_the_bundle_and_is_logged(root):
    def judge(bundle, step):
        sample = Sample.from_dict({"id": "a", "messages": [{"role": "user", "content": "Which side?"}]})
        return {"words": float(len(bundle.generate([sample], max_new_tokens=3))), "at": float(step)}

    folder = train(tiny_run.recipe(root, tiny_run.stage(validation=VALIDATION)), judge=judge)
    assert [(row["words"], row["at"]) for row in log(folder, "validation")] == [(1.0, 2.0), (1.0, 4.0)]
    plain = train(tiny_run.recipe(root, tiny_run.stage(validation=VALIDATION), output=str(root / "plain")))
    assert furthest(weights(folder), weights(plain)) == 0.0  # judging changes nothing


def test_heads_learn_what_pictures_show(root):
    stage = tiny_run.stage("heads", objective="heads", tune=HEADS, steps=60, global_batch=16, validation=VALIDATION)
    folder = train(tiny_run.recipe(root, stage))
    last = log(folder, "validation")[-1]
    assert last["accuracy/side"] == 1.0
    assert last["accuracy/size"] == 1.0
    assert "accuracy/shape" not in last  # one value beside "none" tells nothing apart


def test_contrast_finds_the_text_of_a_picture(root):
    stage = tiny_run.stage("contrast", objective="contrastive", tune=HEADS, steps=100, global_batch=16)
    stage["data"] = [{"source": "squares/report"}]
    folder = train(tiny_run.recipe(root, stage))
    rows = log(folder)
    # two sides x two sizes: four different texts
    assert sum(row["accuracy/retrieval"] for row in rows[:5]) / 5 < 0.5
    assert sum(row["accuracy/retrieval"] for row in rows[-5:]) / 5 > 0.7


def test_recomputing_activations_and_bf16_learn_too(root):
    plain = train(tiny_run.recipe(root, output=str(root / "plain")))
    recomputed = train(tiny_run.recipe(root, activation_checkpointing=["llm"]))
    assert furthest(weights(plain), weights(recomputed)) < 1e-6
    half = train(tiny_run.recipe(root, precision="bf16", output=str(root / "half")))
    assert {tensor.dtype for tensor in weights(half).values()} == {torch.float32}
    assert log(half)[-1]["loss"] == pytest.approx(log(plain)[-1]["loss"], rel=0.02)
    with pytest.raises(ValueError, match=r"image\.connector.*cannot recompute"):
        train(tiny_run.recipe(root, activation_checkpointing=["image.connector"], output=str(root / "no")))
