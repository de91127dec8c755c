"""Two processes, one with pictures or volumes and one with text, learn what one learns, under every strategy."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import tiny_dual
import tiny_run
from medmvl.model import tune
from medmvl.train.assemble import Place, plan_stage, start_bundle
from medmvl.train.recipe import Recipe
from medmvl.train.run import train

pytestmark = pytest.mark.distributed
CLOSE = 1e-5  # a hundredth of one step at most: Adam makes steps of rounding where a gradient is nearly zero
LIMIT = 240  # seconds; a process that waits for the other one forever is the failure these tests are for

# One picture and one text per step, each too long to share a row with the other: rank 0 sees pictures, rank 1 none.
MIXED = [
    {"source": "squares", "tasks": ["squares/report"], "share": 1},
    {"source": "squares", "tasks": ["squares/text"], "share": 1},
]
VOLUMES = [{"source": "cubes", "tasks": ["cubes/side"], "share": 1}, MIXED[1]]
RATE = {"mode": "full", "lr": 1e-3}
STAGES = (
    # 13 pictures a rank, of which a micro-step holds 12: gradients are accumulated
    tiny_run.stage("heads", objective="heads", steps=2, global_batch=26, tune={"image.encoder": RATE | {"lr": 1e-4}}),
    tiny_run.stage("chat", steps=5, global_batch=2, data=MIXED, tune={"llm": RATE, "image.*": RATE}),
    tiny_run.stage("volumes", steps=3, global_batch=2, data=VOLUMES, tune={"llm": RATE, "volume.*": RATE}),
)

VOLUME_STAGE = STAGES[2] | {"tune": {"llm": RATE, "image.*": RATE, "volume.*": RATE}}
FROZEN = [
    tiny_run.stage(f"frozen-{name}", steps=45, global_batch=2, data=data, tune={"llm": RATE, f"{name}.connector": RATE})
    for name, data in (("image", MIXED), ("volume", VOLUMES))
]
READING = """
from medmvl.imaging.features import FeatureStore
from medmvl.model.encoders.conv import ConvEncoder
from medmvl.train import loop
from medmvl.train.run import main
FeatureStore.seconds_to_read = lambda self, key: 0.0  # whatever else this machine does
train, forward = loop.Loop.train, ConvEncoder.forward
def train_without(self, progress):
    ConvEncoder.forward = None  # no encoder may run
    progress = train(self, progress)
    ConvEncoder.forward = forward
    return progress
loop.Loop.train = train_without
main()
"""
SHARED = {
    "encoder": "slices",
    "encoder_options": {"encoder": "image", "slices": tiny_run.DEPTH, "chunk": 3},
    "connector": "average",
}


def dual(folder):
    """Return a volume tower that reads volume, slices and question, of the size that the tiny run has."""
    tiny_dual.write_parts(folder / "dual")
    size = [tiny_run.DEPTH, tiny_run.SIDE, tiny_run.SIDE]
    options = {
        "volume": {
            "encoder": "vit3d",
            "encoder_options": tiny_dual.VIT3D | {"image_size": size, "patch_size": [2, 4, 4]},
        },
        "slices": {"encoder": {"architecture": tiny_dual.SIGLIP | {"image_size": tiny_run.SIDE, "patch_size": 4}}},
        "text": str(folder / "dual" / "bert"),
    }
    return tiny_dual.tower(folder, encoder_options=options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("distributed")
    tiny_run.write_data(root)
    tiny_run.write_volumes(root)
    return root


def settings(root, name, *stages, **run):
    return tiny_run.recipe(root, *stages, output=str(root / name), volumes=True, max_tokens=48, row_tokens=48, **run)


@pytest.fixture(scope="module")
def alone(root):
    return train(settings(root, "alone", *STAGES, save_every=1, keep_last=19))


@pytest.fixture(scope="module")
def towers_alone(root):
    """Return what volume towers of two encoders learn in one process: name -> (settings, weights)."""
    found = {}
    for name, tower in (("shared", SHARED), ("dual", dual(root))):
        recipe = settings(root, f"{name}-alone", VOLUME_STAGE)
        recipe["model"]["towers"]["volume"] = tower
        found[name] = tower, weights(train(recipe))
    return found


def weights(folder):
    found = {}
    for file in sorted((folder / "bundle").glob("*.safetensors")):
        found |= load_file(file)
    return found


def launch(root, name, *stages, tower=None, program=("-m", "medmvl.train.run"), **run):
    path = root / f"{name}.yaml"
    recipe = settings(root, name, *stages, **run)
    if tower is not None:
        recipe["model"]["towers"]["volume"] = tower
    path.write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.run(
        [*command, *program, str(path), "--resume"],
        env=environment,
        timeout=LIMIT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("index", "tower"), [(1, "image"), (2, "volume")])
def test_one_rank_sees_media_the_other_text(root, index, tower):
    recipe = Recipe.load(settings(root, "unused", *STAGES))
    bundle = start_bundle(recipe)
    stage = recipe.stages[index]
    table = tune.apply(bundle.model, stage.tune)
    seen = []
    for rank in (0, 1):
        plan = plan_stage(stage, index, bundle, recipe.run, table, Place(rank, 2, True), print)
        steps = plan.objective.order.steps(stage.global_batch)
        batches = [plan.objective.preparer(step).batches for _, step in zip(range(stage.steps), steps, strict=False)]
        seen.append([len(batch.media_positions[tower]) > 0 for (batch,) in batches])
        assert all(batch.num_supervised > 0 for (batch,) in batches)
    assert all(one != other for one, other in zip(*seen, strict=True))  # which rank it is, lengths decide


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero3"])
def test_two_processes_learn_what_one_does(root, alone, strategy):
    """They go on from one process's checkpoint after the first step, and one process goes on from theirs."""
    if strategy == "zero3":
        pytest.importorskip("deepspeed")
    folder = root / strategy
    shutil.copytree(alone / "checkpoints/step-00000001", folder / "checkpoints/step-00000001")
    done = launch(root, strategy, *STAGES, strategy=strategy, save_every=4, keep_last=19)
    assert done.returncode == 0, done.stderr[-4000:]
    expected = weights(alone)
    assert furthest(weights(folder), expected) <= CLOSE
    assert furthest(weights_at_start(root), expected) > 1e-3
    shutil.rmtree(folder / "checkpoints/step-00000010")
    assert furthest(weights(train(settings(root, strategy, *STAGES, keep_last=19), resume=True)), expected) <= CLOSE


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero3"])
def test_towers_of_two_encoders_learn_what_they_learn_alone(root, towers_alone, strategy):
    """Slices that use the image tower's encoder, and a dual encoder that reads the question, on one rank only."""
    if strategy == "zero3":
        pytest.importorskip("deepspeed")
    for name, (tower, expected) in towers_alone.items():
        done = launch(root, f"{name}-{strategy}", VOLUME_STAGE, strategy=strategy, tower=tower)
        assert done.returncode == 0, done.stderr[-4000:]
        assert f"{strategy} x 2" in done.stderr + done.stdout
        assert furthest(weights(root / f"{name}-{strategy}"), expected) <= CLOSE
    assert not any(name.startswith("towers.volume.encoder") for name in towers_alone["shared"][1])


@pytest.fixture(scope="module")
def computing_alone(root):
    """Return what one process learns with frozen encoders, computing their features."""
    return weights(train(settings(root, "computed", *FROZEN)))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero3"])
def test_kept_features_teach_what_computed_ones_do(root, computing_alone, strategy):
    """One rank has features, the other text alone; both complete the folder, and no encoder runs any more."""
    if strategy == "zero3":
        pytest.importorskip("deepspeed")
    (root / "reading.py").write_text(READING)
    kept = root / f"features-{strategy}"
    program = [str(root / "reading.py")]
    done = launch(root, f"kept-{strategy}", *FROZEN, strategy=strategy, features=str(kept), program=program)
    assert done.returncode == 0, done.stderr[-4000:]
    assert all(f"features of the {tower} encoder: kept in" in done.stderr for tower in ("image", "volume"))
    assert furthest(weights(root / f"kept-{strategy}"), computing_alone) <= 20 * CLOSE  # 90 steps, each with rounding
    assert furthest(weights_at_start(root), computing_alone) > 1e-2
    stored = [line.split()[2] for file in kept.glob("*.jsonl") for line in file.open()]
    assert len(stored) == len(set(stored)) > 3  # shared out: nothing was computed twice


def test_what_fsdp2_gathers_to_validate_is_not_saved(root):
    """The gathered copies are bf16 under autocast; checkpoints and bundle hold the float32 weights."""
    judged = {"data": [{"source": "squares", "split": "val"}], "every": 1, "samples": 4}
    stage = tiny_run.stage("chat", steps=1, global_batch=2, validation=judged, tune={"llm": RATE, "image.*": RATE})
    done = launch(root, "validated", stage, strategy="fsdp2", precision="bf16")
    assert done.returncode == 0, done.stderr[-4000:]
    saved = load_file(root / "validated/checkpoints/step-00000001/weights-0000.safetensors")
    for tensors in (saved, weights(root / "validated")):
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert all(not torch.equal(t, t.bfloat16().float()) for t in tensors.values() if t.ndim > 1 and t.any())


def furthest(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def weights_at_start(root):
    recipe = Recipe.load(settings(root, "unused", *STAGES))
    torch.manual_seed(recipe.run.seed)
    return {name: tensor.detach() for name, tensor in start_bundle(recipe).model.named_parameters()}
