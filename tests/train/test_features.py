"""Features that are kept: the same is learned, nothing stale is served, and what does not pay is not kept."""

import json
import logging
import multiprocessing
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny_dual
import tiny_run
from medmvl.core.schema import SampleError
from medmvl.data.mixture import Position
from medmvl.imaging import content, shards
from medmvl.imaging.features import FeatureStore, Frame, Kept
from medmvl.model import frozen, tune
from medmvl.model.config import TuneRule
from medmvl.model.encoders.conv import ConvEncoder
from medmvl.train import features
from medmvl.train.assemble import Place, plan_stage, start_bundle
from medmvl.train.features import Features
from medmvl.train.loop import TERMINATED, Stop
from medmvl.train.recipe import Recipe
from medmvl.train.run import train
from medmvl.train.strategy import Engine

RATE = {"mode": "full", "lr": 3e-3}
FROZEN = {"*.connector": RATE, "llm": RATE}
PATCHES = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": tiny_run.SIDE,
    "patch_size": 4,
    "vision_use_head": False,
}
SIGLIP = {"encoder": {"architecture": PATCHES}, "encoder_options": {}, "layer": -2}
SHARED = {"encoder": "slices", "encoder_options": {"encoder": "image", "slices": tiny_run.DEPTH, "chunk": 3}}
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("features")
    tiny_run.write_data(root)
    tiny_run.write_volumes(root)
    return root


@pytest.fixture
def own_root(root, tmp_path):
    """Return a copy of the data that a test may change; its files count as unchanged since long."""
    shutil.copytree(root / "data", tmp_path / "data")
    shutil.copytree(root / "tokenizer", tmp_path / "tokenizer")
    for file in (tmp_path / "data").rglob("*.jsonl"):
        file.write_text(file.read_text().replace(str(root), str(tmp_path)))
    for file in (tmp_path / "data").rglob("manifest.json"):
        file.unlink()  # it names the hashes of the files as they were
    return tmp_path


@pytest.fixture(autouse=True)
def pays(monkeypatch):
    """Let reading count as faster than computing, whatever else this machine does."""
    monkeypatch.setattr(FeatureStore, "seconds_to_read", lambda self, key: 0.0)


@pytest.fixture
def told(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medmvl"), "propagate", True)
    caplog.set_level(logging.INFO, logger="medmvl")
    return lambda: [one.getMessage() for one in caplog.records if one.name == features.__name__]


def stage(**changes):
    data = [{"source": "squares"}, {"source": "cubes"}]
    return tiny_run.stage(**{"data": data, "tune": FROZEN, "steps": 60, "global_batch": 4} | changes)


def recipe(root, folder, *stages, kept="kept", towers=None, **changes):
    settings = tiny_run.recipe(root, *(stages or [stage()]), volumes=True, output=str(folder), **changes)
    settings["run"]["features"] = None if kept is None else str(folder.parent / kept)
    for name, tower in (towers or {}).items():
        settings["model"]["towers"][name] |= tower
    return settings


def run(*arguments, **changes):
    return train(recipe(*arguments, **changes))


def bundle_of(settings, seed=0):
    torch.manual_seed(seed)
    return start_bundle(Recipe.load(settings))


def prepare(settings, bundle=None, index=0, rank=0, world=1, stop=None, start=None, before=None):
    """Return the objective of a stage, towers told where their features are; and whether to leave."""
    parsed = Recipe.load(settings)
    bundle = bundle or bundle_of(settings)
    one = parsed.stages[index]
    table = tune.apply(bundle.model, one.tune)
    plan = plan_stage(one, index, bundle, parsed.run, table, Place(rank, world, False), print)
    engine = Engine("single", "fp32", 1.0)
    found = Features(plan.objective, bundle, one, parsed.run, parsed.run.precision, engine)
    leave = found.keep(start or Position(), plan.objective.steps, stop or Stop(), before)
    return plan.objective, leave


def towers_kept(objective):
    return set(objective.preparer.processor.kept)


def batches(objective, steps=4, size=4):
    return [
        batch
        for _, step in zip(range(steps), objective.order.steps(size), strict=False)
        for batch in objective.preparer(step).batches
    ]


def weights(folder):
    found = {}
    for file in sorted((folder / "bundle").glob("*.safetensors")):
        found |= load_file(file)
    return found


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def furthest(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_a_run_learns_the_same_and_a_later_one_to_the_bit(root, tmp_path, told):
    validation = {"data": [{"source": "cubes", "split": "val"}], "every": 10, "samples": 4}
    short = stage(validation=validation, steps=50)
    computed = run(root, tmp_path / "computed", short, kept=None)
    assert not told()
    first = run(root, tmp_path / "first", short)
    at_first = told()
    later = run(root, tmp_path / "later", short, workers=2)
    assert losses(first) == pytest.approx(losses(computed), abs=1e-5)
    assert furthest(weights(first), weights(computed)) < 1e-3  # rounding, which Adam blows up where gradients vanish
    assert losses(first) == losses(later)
    assert furthest(weights(first), weights(later)) == 0.0
    # 20 pictures to train with and the four shown beside cubes; ten volumes to train with, two held out
    assert [line.rpartition("about ")[2].split()[0] for line in at_first[:2]] == ["20", "12"]
    assert at_first[2].startswith("features: 32 computed")
    assert [line.rpartition(", ")[2] for line in told()[3:]] == ["all there", "all there"]


@pytest.mark.parametrize(
    ("towers", "data"),
    [
        ({}, "squares"),
        ({"image": SIGLIP}, "squares"),
        ({}, "cubes"),
        ({"image": SIGLIP, "volume": SHARED}, "cubes"),
    ],
)
def test_loss_and_gradients_are_equal_to_the_bit(root, tmp_path, monkeypatch, towers, data):
    """Rows of one medium, for a batch of another size may round otherwise: kept in float32, features are exact."""
    monkeypatch.setattr(frozen, "_TOKENS_AT_ONCE", 1)
    shown = stage(data=[{"source": data}], global_batch=1, steps=80)
    settings = recipe(root, tmp_path / "run", shown, towers=towers, row_tokens=128)
    computing, _ = prepare(settings | {"run": settings["run"] | {"features": None}})
    reading, _ = prepare(settings)
    assert not towers_kept(computing)
    assert towers_kept(reading) >= {"image" if data == "squares" else "volume"}
    found = 0
    for one, other in zip(batches(computing, 8, 1), batches(reading, 8, 1), strict=True):
        assert one.sample_ids == other.sample_ids
        assert not set(other.pixels) & towers_kept(reading)
        found += sum(len(tensor) for tensor in other.features.values())
        results = []
        for objective, batch in ((computing, one), (reading, other)):
            objective.module.zero_grad()
            output = objective.module(**batch.model_inputs())
            output.loss.backward()
            learned = {n: p.grad.clone() for n, p in objective.module.named_parameters() if p.grad is not None}
            results.append((output.loss.detach(), learned))
        assert torch.equal(results[0][0], results[1][0])
        assert results[0][1].keys() == results[1][1].keys()
        assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])
        assert any(name.startswith("towers.") for name in results[0][1])
    assert found > 4


def test_every_medium_of_the_stage_has_features(root, tmp_path):
    """Even where an epoch does not pass over all of them, and where the stage is resumed in the middle."""
    data = [{"source": "squares/side", "share": 1}, {"source": "cubes", "share": 2}]
    settings = recipe(root, tmp_path / "run", stage(data=data))
    objective, _ = prepare(settings, start=Position(1, 7))
    for step, _ in zip(objective.order.steps(4, Position(1, 7)), range(60), strict=False):
        assert not objective.preparer(step).refused


def test_a_resumed_stage_decides_as_it_did_before(root, tmp_path, told):
    short = recipe(root, tmp_path / "run", stage(steps=2))
    assert not towers_kept(prepare(short)[0])
    assert towers_kept(prepare(short, before=["volume"])[0]) == {"volume"}
    assert towers_kept(prepare(recipe(root, tmp_path / "run"))[0]) == {"image", "volume"}
    assert towers_kept(prepare(short)[0]) == {"image", "volume"}  # all there by now
    assert not towers_kept(prepare(short, before=[])[0])
    assert told()[-1].endswith("as they were before the run was resumed")


def test_the_encoder_runs_for_no_row(root, tmp_path, monkeypatch):
    settings = recipe(root, tmp_path / "run")
    objective, _ = prepare(settings)
    forward = ConvEncoder.forward
    monkeypatch.setattr(ConvEncoder, "forward", lambda *_: pytest.fail("an encoder ran"))
    for batch in [*batches(objective), objective.preparer.filler()]:
        objective.module(**batch.model_inputs()).loss.backward()
    assert set(objective.preparer.filler().features) == {"image", "volume"}
    monkeypatch.setattr(ConvEncoder, "forward", forward)
    blank = prepare(recipe(root, tmp_path / "run", kept=None))[0]
    one, other = (
        objective.module.towers["image"](**{kind: getattr(objective.preparer.filler(), kind)["image"]})
        for objective, kind in ((objective, "features"), (blank, "pixels"))
    )
    torch.testing.assert_close(one, other)


def test_boxes_are_placed_without_reading_pictures(root, tmp_path, monkeypatch):
    settings = recipe(root, tmp_path / "run", stage(data=[{"source": "squares/rec"}]))
    computing, _ = prepare(settings | {"run": settings["run"] | {"features": None}})
    expected = batches(computing)
    reading, _ = prepare(settings)
    monkeypatch.setattr("medmvl.processing.encoded.read_picture", lambda path: pytest.fail(f"{path} was read"))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(expected, batches(reading), strict=True))


def test_other_weights_layers_specs_or_code_have_other_features(root, tmp_path):
    tower = SIGLIP | {"spec": {"mean": [0.5] * 3, "std": [0.5] * 3}}

    def made(seed=0, precision="fp32", change=None, **changes):
        bundle = bundle_of(recipe(root, tmp_path / "x", towers={"image": tower | changes, "volume": SHARED}), seed)
        if change is not None:
            change(bundle.model)
        return [frozen.fingerprint(bundle.model, bundle.config, name, precision) for name in ("image", "volume")]

    def nudge(part):
        def change(model):
            with torch.no_grad():
                dict(model.named_parameters())[part].view(-1)[0] += 1e-3

        return change

    def adapt(alpha):
        def change(model):
            rule = TuneRule(mode="lora", lr=1e-3, rank=2, alpha=alpha)
            tune.apply(model, {"image.encoder": rule})
            with torch.no_grad():
                for name, one in model.named_parameters():
                    one.fill_(0.1) if "lora_" in name else None

        return change

    model = "towers.image.encoder.model."
    layer = model + "encoder.layers.{}.mlp.fc1.weight"
    several = [
        made(),
        made(seed=1),
        made(precision="bf16"),
        made(layer=-1),
        made(tokens="patches"),
        made(spec={"mean": [0.4] * 3, "std": [0.5] * 3}),
        made(change=nudge(layer.format(1))),
        made(change=adapt(4.0)),
        made(change=adapt(8.0)),
    ]
    for which in (0, 1):  # what the volume tower borrows counts for it as well
        assert len({one[which] for one in several}) == len(several)
    # A connector, the LLM, and a layer behind the feature change nothing; nor does how the model came to be.
    assert made(change=nudge("towers.image.connector.0.weight")) == several[0]
    assert made(change=nudge("llm.model.norm.weight")) == several[0]
    assert made(change=nudge(layer.format(2))) == several[0]
    assert made(connector="linear", connector_options={})[0] == several[0][0]
    bundle = bundle_of(recipe(root, tmp_path / "x", towers={"image": tower, "volume": SHARED}))
    loaded = type(bundle).load(bundle.save(tmp_path / "bundle"))
    assert [frozen.fingerprint(loaded.model, loaded.config, n, "fp32") for n in ("image", "volume")] == several[0]


def test_buffers_count_as_weights(root, tmp_path):
    """CTViT's codebook is one, and so are the statistics of batch norms."""
    bundle = bundle_of(recipe(root, tmp_path / "x"))
    encoder = bundle.model.towers["image"].encoder
    encoder.register_buffer("statistics", torch.zeros(3))
    before = frozen.fingerprint(bundle.model, bundle.config, "image", "fp32")
    encoder.statistics[1] = 1.0
    assert frozen.fingerprint(bundle.model, bundle.config, "image", "fp32") != before


@pytest.mark.parametrize("settled", [True, False])
def test_a_changed_file_gets_features_of_its_own(own_root, tmp_path, monkeypatch, settled):
    if settled:
        monkeypatch.setattr(content, "_SETTLED", -(10**9))
    settings = recipe(own_root, tmp_path / "run", stage(data=[{"source": "squares"}]))
    before = batches(prepare(settings)[0], 25)
    path = own_root / "data/squares/images/3.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    after = batches(prepare(settings)[0], 25)
    expected = batches(prepare(settings | {"run": settings["run"] | {"features": str(tmp_path / "other")}})[0], 25)
    assert any(not torch.equal(a.features["image"], b.features["image"]) for a, b in zip(before, after, strict=True))
    for one, other in zip(after, expected, strict=True):
        torch.testing.assert_close(one.features["image"], other.features["image"])


def test_a_file_that_changes_while_the_run_goes_on_is_refused(own_root, tmp_path):
    objective, _ = prepare(recipe(own_root, tmp_path / "run", stage(data=[{"source": "squares/side"}])))
    path = own_root / "data/squares/images/3.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    (own_root / "data/squares/images/4.png").write_bytes(b"not a picture")
    refused = {}
    for _, step in zip(range(10), objective.order.steps(4), strict=False):
        refused |= {one.sample_id: one.reason for one in objective.preparer(step).refused}
    assert refused.keys() == {"3-side", "4-side"}
    assert "features are completed when it starts" in refused["3-side"]
    assert "no picture that Pillow can read" in refused["4-side"]


def test_broken_media_are_refused_as_without_features(own_root, tmp_path):
    (own_root / "data/squares/images/0.png").write_bytes(b"not a picture")
    (own_root / "data/squares/images/1.png").unlink()
    refused = []
    for kept in ("kept", None):
        folder = run(own_root, tmp_path / f"run-{kept}", stage(steps=50), kept=kept, max_refused=0.5)
        refused.append((folder / "refused.jsonl").read_text())
    assert refused[0] == refused[1]
    assert len(refused[0].splitlines()) >= 8


def test_a_damaged_entry_is_computed_anew_by_the_next_run(root, tmp_path):
    settings = recipe(root, tmp_path / "run", stage(data=[{"source": "squares/side"}]))
    objective, _ = prepare(settings)
    expected = batches(objective, steps=10)
    (data,) = [one for one in (tmp_path / "kept").glob("*.bin") if one.stat().st_size > 2**17]
    with data.open("r+b") as file:
        file.seek(2 * 2**16)
        file.write(b"\xff" * 64)
    objective, _ = prepare(settings)
    steps = [step for step, _ in zip(objective.order.steps(4), range(5), strict=False)]
    assert sum(len(objective.preparer(step).refused) for step in steps) == 1
    again = batches(prepare(settings)[0], steps=10)
    for one, other in zip(expected, again, strict=True):
        torch.testing.assert_close(one.features["image"], other.features["image"])


def test_features_that_were_cut_off_are_computed_before_the_run(root, tmp_path):
    settings = recipe(root, tmp_path / "run", stage(data=[{"source": "squares/side"}]))
    expected = batches(prepare(settings)[0], steps=10)
    for data in (tmp_path / "kept").glob("*.bin"):
        os.truncate(data, data.stat().st_size // 2)
    objective, _ = prepare(settings)
    steps = [step for step, _ in zip(objective.order.steps(4), range(10), strict=False)]
    assert not any(objective.preparer(step).refused for step in steps)
    for one, other in zip(expected, batches(objective, steps=10), strict=True):
        torch.testing.assert_close(one.features["image"], other.features["image"])


def test_an_encoder_of_other_code_is_noticed(root, tmp_path, monkeypatch, told):
    settings = recipe(root, tmp_path / "run", stage(data=[{"source": "squares"}]))
    assert "image" in towers_kept(prepare(settings)[0])
    forward = ConvEncoder.forward
    monkeypatch.setattr(ConvEncoder, "forward", lambda self, pixels: 1.1 * forward(self, pixels))
    assert "image" not in towers_kept(prepare(settings)[0])
    assert "written by other code" in told()[-1]


def test_an_encoder_that_an_earlier_stage_trained_has_features_of_its_own(root, tmp_path):
    learning = stage(tune={"image.encoder": RATE, "llm": RATE}, steps=6, name="learn", data=[{"source": "squares"}])
    stages = (learning, stage(steps=40, data=[{"source": "squares"}]))
    kept, computed = (run(root, tmp_path / f"{kept}-run", *stages, kept=kept) for kept in ("kept", None))
    assert losses(kept) == pytest.approx(losses(computed), abs=1e-5)


def _why(told):
    return [line.partition(": computed at every use: ")[2] for line in told() if "every use" in line]


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"tune": {"image.*": RATE}}, ["its encoder learns", None]),
        (
            {"tune": FROZEN | {"volume.encoder": RATE}},
            [None, "its encoder learns"],
        ),
        ({"tune": FROZEN | {"image.encoder": {"mode": "lora", "lr": 1e-3, "rank": 2}}}, ["its encoder learns", None]),
        ({"augmentation": {"shift": 0.1}}, ["media are augmented"] * 2),
        ({"augmentation": {"shift": 0.0}}, [None, None]),
        (
            {"steps": 5, "data": [{"source": "squares/side"}, {"source": "cubes/side"}]},
            ["saves too little in this stage"] * 2,
        ),
    ],
)
def test_features_that_would_change_or_save_nothing_are_computed(root, tmp_path, told, changes, reasons):
    towers = {"image": SIGLIP}  # a tower that LoRA can sit on
    objective, _ = prepare(recipe(root, tmp_path / "run", stage(**changes), towers=towers))
    kept = {name for name, reason in zip(("image", "volume"), reasons, strict=True) if reason is None}
    assert towers_kept(objective) == kept
    assert len(told()) >= 2
    for reason, line in zip([one for one in reasons if one], _why(told), strict=True):
        assert line.endswith(reason)


def test_what_a_tower_borrows_must_not_learn(root, tmp_path, told):
    one = stage(tune={"image.encoder": RATE, "llm": RATE})
    objective, _ = prepare(recipe(root, tmp_path / "run", one, towers={"volume": SHARED}))
    assert not towers_kept(objective)
    assert _why(told) == ["its encoder learns"] * 2


def test_an_encoder_that_reads_the_question_is_never_kept(root, tmp_path, told):
    tiny_dual.write_parts(tmp_path / "dual")
    size = [tiny_run.DEPTH, tiny_run.SIDE, tiny_run.SIDE]
    options = {
        "volume": {
            "encoder": "vit3d",
            "encoder_options": tiny_dual.VIT3D | {"image_size": size, "patch_size": [2, 4, 4]},
        },
        "slices": {"encoder": {"architecture": tiny_dual.SIGLIP | {"image_size": tiny_run.SIDE, "patch_size": 4}}},
        "text": str(tmp_path / "dual" / "bert"),
    }
    settings = recipe(root, tmp_path / "run", stage(data=[{"source": "cubes/side"}]))
    settings["model"]["towers"]["volume"] = tiny_dual.tower(tmp_path, encoder_options=options)
    assert "volume" not in towers_kept(prepare(settings)[0])
    assert _why(told) == ["its encoder reads the question"]


def test_a_slow_disk_and_a_small_one_are_told(root, tmp_path, monkeypatch, told):
    settings = recipe(root, tmp_path / "run", stage(data=[{"source": "squares"}]))
    monkeypatch.setattr(FeatureStore, "seconds_to_read", lambda self, key: 3.0)
    assert "image" not in towers_kept(prepare(settings)[0])
    assert "with 3e+03 ms to read" in told()[-1]
    monkeypatch.setattr(features, "room", lambda folder: 1000)
    assert "image" not in towers_kept(prepare(settings)[0])
    assert "they need 2.6 kB, and 1.0 kB may be taken" in told()[-1]


def test_a_disk_that_fills_up_stops_nothing(root, tmp_path, monkeypatch, told):
    real, calls = shards._write, []

    def full(file, data):
        calls.append(len(data))
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        real(file, data)

    settings = recipe(root, tmp_path / "run", stage(data=[{"source": "squares"}]))
    monkeypatch.setattr(shards, "_write", full)
    objective, leave = prepare(settings)
    assert "image" not in towers_kept(objective)
    assert not leave
    assert "cannot be kept" in told()[-1]
    monkeypatch.setattr(shards, "_write", real)
    assert "image" in towers_kept(prepare(settings)[0])
    assert "computed in" in told()[-1]


def test_asked_to_leave_it_leaves_before_a_step(root, tmp_path):
    stop = Stop()
    stop.asked = True
    objective, leave = prepare(recipe(root, tmp_path / "run"), stop=stop)
    assert leave
    assert "image" not in towers_kept(objective)
    assert TERMINATED == 143


def test_bf16_keeps_float16_within_its_rounding(root, tmp_path):
    half = {"precision": "bf16", "towers": {"image": SIGLIP}}
    found = [losses(run(root, tmp_path / f"{kept}-run", stage(steps=50), kept=kept, **half)) for kept in ("kept", None)]
    assert found[0] == pytest.approx(found[1], rel=0.01)
    objective, _ = prepare(recipe(root, tmp_path / "again", stage(steps=50), **half))
    assert {one.dtype for batch in batches(objective) for one in batch.features.values()} == {torch.float16}


def test_what_float16_cannot_hold_is_kept_in_float32(root, tmp_path):
    bundle = bundle_of(recipe(root, tmp_path / "x"))
    with torch.no_grad():
        bundle.model.towers["image"].encoder.positions[0, 0] = 1e6
    with frozen.FrozenEncoder(bundle.model, "image", torch.device("cpu"), "bf16") as encoder:
        large = encoder(torch.zeros(1, 1, tiny_run.SIDE, tiny_run.SIDE))
    assert large.dtype == np.float32
    assert large[0, 0, 0] == pytest.approx(1e6, rel=0.01)


def test_processes_that_fill_one_folder_at_once(root, tmp_path):
    settings = recipe(root, tmp_path / "run")
    expected = batches(prepare(recipe(root, tmp_path / "alone", kept="alone"))[0])
    context = [FORK.Process(target=_fill, args=(settings,)) for _ in range(3)]
    for one in context:
        one.start()
    for one in context:
        one.join(120)
        assert one.exitcode == 0
    found = batches(prepare(settings)[0])
    for one, other in zip(expected, found, strict=True):
        assert one.features.keys() == other.features.keys()
        assert all(torch.allclose(one.features[name], other.features[name], atol=1e-6) for name in one.features)


def _fill(settings):
    torch.set_num_threads(1)
    objective, _ = prepare(settings)
    if towers_kept(objective) != {"image", "volume"}:
        raise SystemExit(3)


def test_features_are_found_by_content_not_by_name(tmp_path):
    store = FeatureStore(tmp_path / "kept")
    kept = Kept(store, "encoder", np.zeros((1, 2), np.float32))
    (tmp_path / "a.png").write_bytes(b"same")
    (tmp_path / "b.png").write_bytes(b"same")
    entry = kept.entry(str(tmp_path / "a.png"), "")
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    frame = Frame(np.array([[0.1, 0.0, 1 / 3], [0.0, 2.0, 0.0]]), (5, 7))
    assert kept.put(entry.key, array, frame)
    found, its_frame = kept.load(str(tmp_path / "b.png"), "", lambda: pytest.fail("was read"))
    assert np.array_equal(found, array)
    assert np.array_equal(its_frame.affine, frame.affine)
    assert its_frame.file_size == (5, 7)
    elsewhere = FeatureStore(tmp_path / "elsewhere")
    for other in (Kept(store, "other encoder", kept.blank), Kept(elsewhere, "encoder", kept.blank)):
        with pytest.raises(ValueError, match="its features are not in"):
            other.load(str(tmp_path / "b.png"), "", lambda: None)
    with pytest.raises(ValueError, match="its features are not in"):
        kept.load(str(tmp_path / "b.png"), "mirrored", lambda: None)
    with pytest.raises(SampleError):
        kept.load(str(tmp_path / "gone.png"), "", lambda: (_ for _ in ()).throw(SampleError("gone", "x")))


def test_machines_without_a_common_disk_complete_their_own(monkeypatch):
    engine = SimpleNamespace(rank=5, world=8)
    assert features._shares(engine) == [(5, 8)]
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert features._shares(engine) == [(5, 8), (1, 4)]
