"""A run that is killed at any moment and resumed ends with the same bits as one that never was."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import tiny_run
from medmvl.imaging.features import FeatureStore
from medmvl.train.loop import TERMINATED, Loop, Stop
from medmvl.train.run import train

KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from medmvl.train.loop import Loop
from medmvl.train.run import train
report, last, number = Loop._report, int(sys.argv[2]), int(sys.argv[3])
def report_and_die(self, progress):
    report(self, progress)
    if progress.step == last:
        os.killpg(0, number)  # loader processes too, as torchrun and Slurm do
Loop._report = report_and_die
train(sys.argv[1])
"""

STAGES = (
    tiny_run.stage("heads", objective="heads", steps=7, tune={"image.encoder": {"mode": "full", "lr": 1e-2}}),
    tiny_run.stage(
        "chat",
        steps=14,
        augmentation={"shift": 0.1, "noise": 0.1},
        tune={
            "llm": {"mode": "lora", "lr": 1e-2, "rank": 4, "dropout": 0.2},
            "image.*": {"mode": "full", "lr": 3e-3},
        },
        validation={"data": [{"source": "squares", "split": "val"}], "every": 6, "samples": 8},
    ),
    tiny_run.stage(
        "volumes",
        steps=7,
        data=[{"source": "cubes"}, {"source": "squares"}],
        augmentation={"rotate": 10, "shift": 0.1, "noise": 0.1},
        tune={"*.encoder": {"mode": "full", "lr": 3e-3}, "volume.connector": {"mode": "full", "lr": 3e-3}},
    ),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    tiny_run.write_data(root)
    tiny_run.write_volumes(root)
    return root


@pytest.fixture(scope="module")
def uninterrupted(root):
    settings = tiny_run.recipe(root, *STAGES, volumes=True, output=str(root / "whole"))
    return train(settings)


def interrupted(root, name, step, number, **run):
    path = root / f"{name}.yaml"
    path.write_text(
        json.dumps(tiny_run.recipe(root, *STAGES, volumes=True, output=str(root / name), save_every=5, **run))
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(step), str(number)],
        env=environment,
        timeout=120,
        check=False,
        start_new_session=True,
    )
    return path, done.returncode


FROZEN = tiny_run.stage(
    "frozen",
    steps=60,
    global_batch=4,
    data=[{"source": "squares"}, {"source": "cubes"}],
    tune={"llm": {"mode": "lora", "lr": 1e-2, "rank": 4, "dropout": 0.2}, "*.connector": {"mode": "full", "lr": 3e-3}},
)


@pytest.mark.parametrize("emptied", [False, True])
def test_killed_run_with_kept_features_resumes_bit_for_bit(root, monkeypatch, emptied):
    """Even where the folder was emptied before it is resumed."""
    monkeypatch.setattr(FeatureStore, "seconds_to_read", lambda self, key: 0.0)
    whole, part, kept = (root / f"{name}-{emptied}" for name in ("kept-whole", "kept-killed", "features"))
    settings = {"volumes": True, "features": str(kept), "save_every": 5}
    train(tiny_run.recipe(root, FROZEN, output=str(whole), **settings))
    recipe = tiny_run.recipe(root, FROZEN, output=str(part), **settings)
    monkeypatch.setattr(Loop, "_report", _raise_at(47))
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.undo()
    monkeypatch.setattr(FeatureStore, "seconds_to_read", lambda self, key: 0.0)
    if emptied:
        shutil.rmtree(kept)
    train(recipe, resume=True)
    assert_same(part, whole)
    assert any(kept.glob("*.bin"))


ADAPTED = {"mode": "lora", "lr": 1e-2, "rank": 4, "dropout": 0.2}
LAYERS = tuple(
    tiny_run.stage(f"llm-{number}", steps=4, data=[{"source": "squares"}], tune={"llm": rule})
    for number, rule in enumerate(({"mode": "full", "lr": 1e-2}, ADAPTED, {"mode": "full", "lr": 1e-3}, ADAPTED))
)


@pytest.mark.parametrize("step", [6, 10, 14])
def test_adapters_upon_trained_weights_resume_bit_for_bit(root, monkeypatch, step):
    """The weights under an adapter were trained by a stage before: a checkpoint must hold them too."""
    whole, part = root / "adapted-whole", root / f"adapted-{step}"
    if not whole.exists():
        train(tiny_run.recipe(root, *LAYERS, output=str(whole), save_every=2))
    recipe = tiny_run.recipe(root, *LAYERS, output=str(part), save_every=2)
    monkeypatch.setattr(Loop, "_report", _raise_at(step + 1))
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.undo()
    train(recipe, resume=True)
    assert_same(part, whole)


def test_contrast_resumes_bit_for_bit(root, monkeypatch):
    """What is learned beside the bundle is in a checkpoint as well."""
    contrast = tiny_run.stage(
        "contrast",
        objective="contrastive",
        steps=6,
        data=[{"source": "squares/report"}],
        tune={"image.encoder": {"mode": "full", "lr": 1e-2}},
    )
    whole, part = root / "contrast-whole", root / "contrast-killed"
    train(tiny_run.recipe(root, contrast, output=str(whole), save_every=2))
    recipe = tiny_run.recipe(root, contrast, output=str(part), save_every=2)
    monkeypatch.setattr(Loop, "_report", _raise_at(5))
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.undo()
    train(recipe, resume=True)
    assert_same(part, whole)


def _raise_at(step):
    report = Loop._report

    def report_and_leave(self, progress):
        report(self, progress)
        if progress.step == step:
            raise KeyboardInterrupt

    return report_and_leave


def final(folder):
    weights = {}
    for file in sorted((folder / "bundle").glob("*.safetensors")):
        weights |= load_file(file)
    newest = max((folder / "checkpoints").glob("step-*"))
    return weights, load_file(newest / "optimizer-0000.safetensors"), newest.name


def assert_same(one, other):
    for first, second in zip(final(one)[:2], final(other)[:2], strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert final(one)[2] == final(other)[2]


# Step 6 is in the first stage, 13 in the middle of the second stage's epoch, 24 in the stage of volumes.
@pytest.mark.parametrize(("step", "run"), [(6, {}), (13, {"workers": 2}), (24, {"workers": 2})])
def test_killed_run_resumes_bit_for_bit(root, uninterrupted, step, run):
    path, code = interrupted(root, f"killed-{step}", step, signal.SIGKILL, **run)
    assert code == -signal.SIGKILL
    folder = train(path, resume=True)
    assert_same(folder, uninterrupted)
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in logged if line["kind"] == "train"]
    assert steps == list(range(1, 29))
    whole = [json.loads(line) for line in (uninterrupted / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in logged] == [line["loss"] for line in whole]


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_saves_and_leaves(root, uninterrupted, capfd, asked):
    path, code = interrupted(root, asked.name, 2, asked, workers=1)
    assert code == TERMINATED == 143
    assert "saved at step 3" in "".join(capfd.readouterr())
    assert (root / asked.name / "checkpoints/step-00000003").is_dir()
    assert_same(train(path, resume=True), uninterrupted)


def test_a_run_that_fails_ends_and_its_loaders_with_it(root):
    """Its traceback keeps the loop alive, and the loop its loader processes, which outlive SIGTERM."""
    failing = tiny_run.stage("failing", steps=30, data=[{"source": "squares"}], tune=STAGES[1]["tune"])
    path = root / "failing.yaml"
    path.write_text(json.dumps(tiny_run.recipe(root, failing, output=str(root / "failing"), workers=2)))
    script = (
        "import sys\nfrom medmvl.train.loop import Loop\nfrom medmvl.train.run import train\n"
        "def fail(self, progress): raise RuntimeError('in the loop')\n"
        "Loop._report = fail\ntrain(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], timeout=60, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: in the loop")


def test_resumed_recipe_must_learn_the_same(root, uninterrupted):
    settings = tiny_run.recipe(root, *STAGES, volumes=True, output=str(uninterrupted))
    settings["stages"][1]["global_batch"] = 6
    with pytest.raises(ValueError, match=r"stages\.1\.global_batch"):
        train(settings, resume=True)
    with pytest.raises(ValueError, match="already holds a run"):
        train(tiny_run.recipe(root, *STAGES, volumes=True, output=str(uninterrupted)))


def test_finished_run_resumes_to_the_same_bundle(root, uninterrupted):
    before = final(uninterrupted)[0]
    train(tiny_run.recipe(root, *STAGES, volumes=True, output=str(uninterrupted)), resume=True)
    after = final(uninterrupted)[0]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_second_ctrl_c_leaves_at_once():
    former = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is former
