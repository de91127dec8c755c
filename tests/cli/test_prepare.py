"""`medmvl data prepare` and `run.prepared`: filled ahead, filled by training, and without effect on what is learned."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import medmvl
import tiny_run
from medmvl.cli.main import main
from medmvl.imaging import cache
from medmvl.imaging.cache import PreparedStore
from medmvl.imaging.read import read_volume
from medmvl.processing.processor import Processor

RULE = {"volume.*": {"mode": "full", "lr": 3e-3}}
CUBES = {"data": [{"source": "cubes"}], "tune": RULE}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepare")
    tiny_run.write_data(root)
    tiny_run.write_volumes(root)
    return root


def _recipe(root: Path, folder: Path, *stages: dict, **run: object) -> dict:
    stages = stages or (tiny_run.stage(steps=2, **CUBES),)
    run = {"output": str(folder / "run"), "prepared": str(folder / "prepared"), **run}
    return tiny_run.recipe(root, *stages, volumes=True, **run)


def _written(root: Path, folder: Path, *stages: dict, **run: object) -> str:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(_recipe(root, folder, *stages, **run)))
    return str(path)


@pytest.fixture
def never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every reading of a volume fail: what is used must come from the cache."""

    def refuse(path: object) -> None:
        raise RuntimeError(f"{path} was read")

    monkeypatch.setattr(cache, "read_volume", refuse)
    monkeypatch.setattr("medmvl.processing.encoded.read_volume", refuse)
    monkeypatch.setattr(PreparedStore.fitted, "__defaults__", (refuse,))


def test_volumes_of_a_recipe(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validation = {"data": [{"source": "cubes", "split": "val"}], "every": 1, "samples": 2}
    text = tiny_run.stage("text", data=[{"source": "cubes", "media": "drop"}])
    recipe = _written(root, tmp_path, tiny_run.stage(validation=validation, **CUBES), text)
    assert main(["data", "prepare", "--recipe", recipe, "--workers", "2"]) == 0
    shown = capsys.readouterr().out
    assert f"12 volumes, 2.0 kB each, 24.6 kB in all: {tmp_path}/prepared" in shown
    assert "12 prepared, 0 were there, 0 cannot be used" in shown and "volumes/s" in shown
    assert main(["data", "prepare", "--recipe", recipe, "run.seed=3"]) == 0
    assert "0 prepared, 12 were there" in capsys.readouterr().out


def test_only_what_the_recipe_shows(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = _written(root, tmp_path)
    assert main(["data", "prepare", "--recipe", recipe, "--out", str(tmp_path / "other")]) == 0
    assert "10 prepared" in capsys.readouterr().out  # the split val is not shown
    assert not (tmp_path / "prepared").exists()
    assert main(["data", "prepare", "cubes", "--recipe", recipe, "--out", str(tmp_path / "other")]) == 0
    assert "2 prepared, 10 were there" in capsys.readouterr().out


def test_broken_volumes_are_listed_at_the_end(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root / "data", tmp_path / "data")
    volumes = tmp_path / "data" / "cubes" / "volumes"
    (volumes / "3.nii.gz").unlink()
    (volumes / "4.nii.gz").write_bytes(b"no volume at all")
    recipe = _written(root, tmp_path, data_roots=[str(tmp_path / "data"), str(root / "data")])
    assert main(["data", "prepare", "--recipe", recipe]) == 1
    shown = capsys.readouterr()
    assert "8 prepared, 0 were there, 2 cannot be used" in shown.out
    assert "3.nii.gz: does not exist" in shown.err and "4.nii.gz: " in shown.err
    assert "Traceback" not in shown.err


def test_check_says_what_it_will_take(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", _written(root, tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("volumes: some files were looked for, none was opened") == 1
    assert f"prepared volumes: 2.0 kB each, about 10 of them, 20.5 kB, in {tmp_path}/prepared (" in shown
    assert main(["check", _written(root, tmp_path), "run.prepared=null"]) == 0
    assert "prepared volumes: not kept" in capsys.readouterr().out
    assert not (tmp_path / "prepared").exists()


def test_check_says_whether_features_are_kept(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learning = _written(root, tmp_path)
    assert main(["check", learning]) == 0
    assert "features of the volume encoder: computed at every use: its encoder learns" in capsys.readouterr().out
    frozen = tiny_run.stage(data=[{"source": "cubes"}], tune={"*.connector": {"mode": "full", "lr": 1e-3}})
    (tmp_path / "frozen.yaml").write_text(json.dumps(_recipe(root, tmp_path, frozen, features=str(tmp_path / "kept"))))
    check = ["check", str(tmp_path / "frozen.yaml")]
    assert main(check) == 0
    shown = capsys.readouterr().out
    assert f"features of the volume encoder: kept in {tmp_path}/kept where that saves time" in shown
    assert "512 B each, about 10, 5.1 kB" in shown  # 4 slices of 2 x 2 tokens, 8 wide, in float32
    assert "256 B each, about 10, 2.6 kB" in _printed(check, "run.precision=bf16", capsys)
    assert "its encoder learns" not in shown
    assert "computed at every use: run.features is null" in _printed(check, "run.features=null", capsys)
    assert "media are augmented" in _printed(check, "stages.0.augmentation.noise=0.1", capsys)
    assert not (tmp_path / "kept").exists()


def _printed(command: list[str], override: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*command, override]) == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("never_read")
def test_training_reads_what_was_prepared(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as readable:
        readable.setattr(cache, "read_volume", read_volume)
        assert main(["data", "prepare", "--recipe", _written(root, tmp_path)]) == 0
    assert main(["train", _written(root, tmp_path)]) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_changes_nothing(root: Path, tmp_path: Path, workers: int) -> None:
    """Weights after some steps, bit for bit: without a cache, while it fills, and from it; with augmentation."""
    stage = tiny_run.stage(steps=4, augmentation={"rotate": 5.0, "contrast": 0.2}, **CUBES)
    weights = []
    for name, prepared in (("without", None), ("filling", "prepared"), ("from", "prepared")):
        folder = None if prepared is None else str(tmp_path / prepared)
        output = str(tmp_path / name)
        run = medmvl.train(_recipe(root, tmp_path, stage, output=output, prepared=folder, workers=workers))
        weights.append(medmvl.load(run / "bundle").model.state_dict())
    assert any((tmp_path / "prepared").glob("*.bin"))
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in weights[0])


def test_what_the_processor_shows_is_the_same(root: Path, tmp_path: Path) -> None:
    bundle = medmvl.Bundle.build(tiny_run.model(root, volumes=True), max_tokens=256)
    samples = tiny_run_samples(root)
    plain = [bundle.processor.encode(sample).media[-1].view for sample in samples]
    bundle.processor.store = PreparedStore(tmp_path / "prepared")
    for _ in range(2):
        for sample, view in zip(samples, plain, strict=True):
            kept = bundle.processor.encode(sample).media[-1].view
            assert kept.pixels.tobytes() == view.pixels.tobytes() and kept.affine.tobytes() == view.affine.tobytes()
            assert kept.file_size == view.file_size
    bundle.processor.save(tmp_path / "saved")
    assert Processor.load(tmp_path / "saved").store is None
    assert "prepared" not in (tmp_path / "saved" / "processor.json").read_text()


def tiny_run_samples(root: Path) -> list:
    from medmvl.data.store import SampleStore

    return list(SampleStore(root / "data" / "cubes", "train", roots=[root / "data"]))[:6]


def test_encoder_stages_use_it(root: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (root / "data" / "cubes" / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row["meta"] = {"attributes": {"side": "left" if int(row["id"].split("-")[1]) % 2 == 0 else "right"}}
        for part in row["messages"][0]["content"]:
            if "path" in part:
                part["path"] = str((root / "data" / "cubes" / part["path"]).resolve())
    (tmp_path / "known").mkdir()
    (tmp_path / "known" / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    rule = {"volume.encoder": {"mode": "full", "lr": 1e-3}}
    data = [{"source": str(tmp_path / "known"), "tasks": ["cubes/side"]}]
    stage = tiny_run.stage("heads", objective="heads", steps=2, data=data, tune=rule)
    medmvl.train(_recipe(root, tmp_path, stage))
    assert any((tmp_path / "prepared").glob("*.bin"))


@pytest.fixture(scope="module")
def bundle(root: Path) -> Path:
    return medmvl.train(_recipe(root, root)) / "bundle"


def test_for_a_bundle(root: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = shutil.copytree(root / "data" / "cubes", tmp_path / "cubes")
    for split in ("train", "val"):  # no pictures of other folders beside
        lines = (store / f"{split}.jsonl").read_text().splitlines()
        (store / f"{split}.jsonl").write_text("\n".join(line for line in lines if '"image"' not in line))
    for name in (bundle, bundle.parent):
        command = ["data", "prepare", str(store), "--bundle", str(name), "--out", str(tmp_path / "prepared")]
        assert main(command) == 0
    assert "0 prepared, 12 were there" in capsys.readouterr().out


def test_evaluation_reads_it(root: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tmp_path / "side.yaml"
    task.write_text(
        "name: mine/side\nversion: '1.0'\ntitle: Side\nfamily: classification\nsource: cubes/side\n"
        "split: train\nanswer: text\nmetrics: [accuracy_strict]\ncontrols: []\ngeneration: {max_new_tokens: 4}\n"
    )
    plain = medmvl.evaluate(bundle, task, roots=[root / "data"])
    model = medmvl.load(bundle)
    for _ in range(2):
        kept = medmvl.evaluate(model, task, roots=[root / "data"], prepared=tmp_path / "prepared")
        assert kept["tasks"] == plain["tasks"] and model.processor.store is None
    assert any((tmp_path / "prepared").glob("*.bin"))
    monkeypatch.setattr("medmvl.eval.run.write_report", lambda *given: None)  # reads volumes to draw them
    command = ["eval", str(bundle), str(task), "--data", str(root / "data"), "--out", str(tmp_path / "scores")]
    assert main([*command, "--prepared", str(tmp_path / "again")]) == 0
    assert any((tmp_path / "again").glob("*.bin"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "{root}/recipe.yaml", "--bundle", "x"], "either --recipe RECIPE or --bundle BUNDLE"),
        ([], "either --recipe RECIPE or --bundle BUNDLE"),
        (["--bundle", "x"], "name the stores"),
        (["cubes", "--bundle", "{root}"], "is no bundle, nor a run with one"),
        (["cubes", "run.seed=1", "--bundle", "{root}"], "keys belong to --recipe"),
        (["cubse", "--recipe", "{root}/recipe.yaml"], "cubes"),
        (["squares", "--recipe", "{root}/recipe.yaml"], "shows a volume"),
        (["--recipe", "{root}/flat.yaml"], "takes no volumes"),
    ],
)
def test_mistakes(root: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    _written(root, root)
    (root / "flat.yaml").write_text(json.dumps(tiny_run.recipe(root)))
    assert main(["data", "prepare", *(one.format(root=root) for one in arguments)]) == 2
    assert said in (told := capsys.readouterr().err) and "Traceback" not in told
