"""Pictures, volumes and text in one model: packed as alone, and carried over from a model of pictures."""

import io
import logging

import pytest
import torch

import medmvl
import tiny_run
from medmvl.cli.main import main
from medmvl.core.schema import Sample
from medmvl.data.store import SampleStore
from medmvl.processing.collate import collate
from medmvl.processing.pack import arrange
from medmvl.train.run import train


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("volumes")
    tiny_run.write_data(root)
    tiny_run.write_volumes(root)
    return root


@pytest.fixture(scope="module")
def bundle(root):
    torch.manual_seed(0)
    bundle = medmvl.Bundle.build(tiny_run.model(root, volumes=True), max_tokens=256)
    with torch.no_grad():  # fresh connectors whisper: louder, so that the loss hears them
        for tower in bundle.model.towers.values():
            for parameter in tower.connector.parameters():
                parameter.mul_(3)
    return bundle


@pytest.fixture(scope="module")
def mixed(root):
    """Volumes, pictures, both in one sample, two volumes in one sample, several questions about one, and text."""
    cubes = list(SampleStore(root / "data" / "cubes", "train", roots=[root / "data"]))
    squares = list(SampleStore(root / "data" / "squares", "train"))
    one, other = cubes[0].to_dict(), cubes[2].to_dict()
    shown = [sample["messages"][0]["content"][-2] for sample in (one, other)]
    asked = {"role": "user", "content": [*shown, {"type": "text", "text": "Which side?"}]}
    two = Sample.from_dict({**one, "id": "two volumes", "messages": [asked, one["messages"][1]]})
    text = [sample for sample in squares if not sample.media][:2]
    return [*cubes[:7], *squares[:6], two, *text]


def token_losses(bundle, samples):
    """Sample id -> losses of its supervised tokens, all samples packed into as few rows as they need."""
    found = {sample.id: [] for sample in samples}
    rows, _ = arrange([bundle.processor.encode(sample) for sample in samples], 1024, None)
    for row in rows:
        batch = collate(row)
        losses = bundle.model(**batch.model_inputs()).token_losses
        for loss, owner in zip(losses.tolist(), batch.owner.tolist(), strict=True):
            found[batch.sample_ids[owner]].append(loss)
    return found, len(rows)


def gradients(bundle, samples, packed):
    bundle.model.zero_grad()
    loss = bundle.loss(samples, packed=packed)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in bundle.model.named_parameters() if p.grad is not None}


def test_a_mixed_batch_gives_every_sample_its_own_loss(bundle, mixed):
    together, rows = token_losses(bundle, mixed)
    assert rows < len(mixed) / 2
    for sample in mixed:
        (alone, _) = token_losses(bundle, [sample])
        assert together[sample.id] == pytest.approx(alone[sample.id], abs=1e-5)


def test_the_loss_hears_volumes(bundle, mixed):
    one = mixed[0]
    other = next(s for s in mixed if s.task == one.task and s.answer == one.answer and s.media_key != one.media_key)
    assert abs(bundle.loss([one]).item() - bundle.loss([other]).item()) > 1e-4


def test_packed_equals_unpacked_with_gradients(bundle, mixed):
    (packed, one), (alone, other) = (gradients(bundle, mixed, packed) for packed in (True, False))
    assert packed == pytest.approx(alone, abs=1e-5)
    assert one.keys() == other.keys()
    assert any(name.startswith("towers.volume.encoder") for name in one)
    for name in one:
        scale = other[name].norm().clamp_min(1e-3)
        assert (one[name] - other[name]).norm() / scale < 1e-4, name


def test_a_bundle_with_both_towers_comes_back_and_answers_alike(bundle, mixed, tmp_path):
    again = medmvl.load(bundle.save(tmp_path / "bundle") or tmp_path / "bundle")
    for sample in (mixed[0], mixed[7]):
        torch.testing.assert_close(again.logits(sample), bundle.logits(sample), rtol=0, atol=0)
    prompts = [sample.prompt() for sample in mixed]
    together = bundle.generate(prompts, max_new_tokens=4)
    assert together == [bundle.generate([prompt], max_new_tokens=4)[0] for prompt in prompts]


def test_a_volume_model_starts_from_a_picture_model(root, caplog):
    flat = train(tiny_run.recipe(root, tiny_run.stage(steps=2), output=str(root / "flat")))
    cubes = {"data": [{"source": "cubes", "tasks": ["cubes/side"]}]}
    rule = {"volume.connector": {"mode": "full", "lr": 1e-3}}
    settings = tiny_run.recipe(
        root, tiny_run.stage(steps=1, tune=rule, **cubes), output=str(root / "deep"), volumes=True
    )
    del settings["model"]["towers"]["image"]
    with caplog.at_level(logging.INFO, "medmvl"):
        deep = train(settings | {"init_from": str(flat)})
    (told,) = [record.message for record in caplog.records if "carried" in record.message]
    for words in ("carried: llm", "image.encoder -> volume.encoder", "image.connector -> volume.connector"):
        assert words in told
    assert "new: volume.connector (query, positions, attn)" in told
    before, after = medmvl.load(flat / "bundle").model, medmvl.load(deep / "bundle").model
    same_weights(before.llm, after.llm)
    same_weights(before.towers["image"].encoder, after.towers["volume"].encoder.inner)
    moved = after.towers["volume"].connector.mlp.state_dict()
    for name, tensor in before.towers["image"].connector.state_dict().items():
        assert (tensor - moved[name]).abs().max() < 0.01  # one step away


def test_chat_about_a_volume(bundle, root, tmp_path, monkeypatch, capsys):
    bundle.save(tmp_path / "bundle")
    path = root / "data" / "cubes" / "volumes" / "0.nii.gz"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"Which side?\n/volume {path}#hu=header\n/volume no.nii\nAnd this?\n"))
    assert main(["chat", str(tmp_path / "bundle"), "--volume", str(path), "--max-new-tokens", "2"]) == 0
    shown = capsys.readouterr().out
    assert "no file 'no.nii'" in shown and shown.count("you: ") == 5


def same_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
