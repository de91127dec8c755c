"""The commands on real files: convert, inspect, check, train, resume, predict, eval, chat."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medmvl.cli.main import main
from medmvl.core import shipped


@pytest.fixture(scope="module")
def store(work: Path) -> Path:
    out = work / "data" / "colours"
    file, images = f"{work}/annotations.json", f"{work}/images"
    assert main(["data", "convert", "annotations", file, str(out), "--option", f"media_root={images}"]) == 0
    return out


@pytest.fixture(scope="module")
def bundle(work: Path, store: Path) -> Path:
    assert main(["train", f"{work}/recipe.yaml"]) == 0
    return work / "run" / "bundle"


def test_convert_and_inspect(work: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = work / "sheet.png"
    command = ["data", "inspect", str(store), "--out", str(sheet), "-n", "4", "--root", f"{work}/images"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "colour" in shown and "24" in shown and str(sheet) in shown
    assert sheet.stat().st_size > 1000


def test_inspect_shows_the_split_there_is(
    work: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "only").mkdir()
    shutil.copy(store / "train.jsonl", tmp_path / "only" / "val.jsonl")
    command = ["data", "inspect", f"{tmp_path}/only", "--out", f"{tmp_path}/sheet.png", "--root", f"{work}/images"]
    assert main(command) == 0
    assert "val.jsonl: 24 samples" in capsys.readouterr().out and (tmp_path / "sheet.png").exists()


def test_inspect_says_what_there_is(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(store), "--split", "tset"]) == 2
    assert "train" in capsys.readouterr().err


def test_convert_refuses_a_path_that_leaves(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "x", "image": "../1.png", "conversations": [{"from": "human", "value": "<image> a"}]}]
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    assert main(["data", "convert", "annotations", f"{tmp_path}/bad.json", f"{tmp_path}/out"]) == 2
    assert "'x'" in (told := capsys.readouterr().err) and "leaves the given folders" in told
    assert not (tmp_path / "out" / "train.jsonl").exists()


@pytest.mark.parametrize("name", shipped.names("recipes", ".yaml"))
def test_check_of_shipped_recipes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["check", name, "--devices", "2"]) == 0
    shown = capsys.readouterr().out
    for said in (
        "data",
        "total",
        "trainable",
        "tokens:",
        "steps:",
        "zero3",
        f"{name}: valid; before it can run,",
        "fetch: ",
    ):
        assert said in shown
    assert list(tmp_path.iterdir()) == []


def test_check_of_medm_vl_2d_has_the_known_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "medm_vl_2d"]) == 0
    shown = capsys.readouterr().out
    for number in ("3,085,938,688", "92,930,304", "5,771,264", "256 per image", "the tokenizer is not on this machine"):
        assert number in shown


def test_check_names_weights_that_are_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    llm, siglip = "Qwen/Qwen2.5-3B-Instruct", "google/siglip-base-patch16-256-multilingual"
    assert main(["check", "medm_vl_2d"]) == 0
    assert f"weights of {llm}, weights of {siglip}\n" in capsys.readouterr().out
    snapshot = tmp_path / f"models--{siglip.replace('/', '--')}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    assert main(["check", "medm_vl_2d"]) == 0
    assert f"weights of {llm}\n" in capsys.readouterr().out


def test_check_counts_what_is_at_hand(work: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{work}/recipe.yaml", "stages.only.steps=null", "stages.only.epochs=3"]) == 0
    shown = capsys.readouterr().out
    assert "steps: 18 of 4 samples (3 epochs of 24)" in shown
    assert "a sample has" in shown and "valid, and its data is here" in shown


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.only.data=[{source: nothing_known}]", "nothing_known"),
        ("stages.only.data=[{source: colours, split: tset}]", "tset"),
        ("model.towers.image.connector_options={dept: 1}", "depth"),
        ("stages.only.tune={llm.modle: {mode: full, lr: 1e-3}}", "llm.modle"),
        ("init_from=no/such/bundle", "no/such/bundle"),
        ("run.activation_checkpointing=[image.connector]", "image.connector (Mlp) cannot recompute"),
        ("run.max_tokens=40", "24 of 24 samples looked at cannot be used"),
    ],
)
def test_check_tells_what_would_fail(
    work: Path, store: Path, override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", f"{work}/recipe.yaml", override]) == 2
    assert said in (told := capsys.readouterr().err)
    assert "Traceback" not in told


def test_check_finds_missing_files(work: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(store, tmp_path / "colours")
    shutil.copytree(work / "images", tmp_path / "colours" / "images")
    (tmp_path / "colours" / "images" / "5.png").unlink()
    text = (tmp_path / "colours" / "train.jsonl").read_text().replace(str(work), str(tmp_path / "colours"))
    (tmp_path / "colours" / "train.jsonl").write_text(text)
    settings = [f"run.data_roots=['{tmp_path}']", "run.max_refused=0.01"]
    assert main(["check", f"{work}/recipe.yaml", *settings]) == 2
    shown = capsys.readouterr()
    assert "refused: 1 of 24" in shown.out and "5.png" in shown.err and "no such file" in shown.err


def test_a_trained_bundle_can_be_checked_as_a_start(
    work: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", f"{work}/recipe.yaml", "model=null", f"init_from={bundle}"]) == 0
    assert "valid" in capsys.readouterr().out


def test_a_run_is_not_overwritten_but_resumed(work: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"{work}/recipe.yaml"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", f"{work}/recipe.yaml", "--resume"]) == 0


def test_predict(work: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(work / "images", tmp_path / "images")
    (tmp_path / "images" / "2.png").unlink()
    (tmp_path / "images" / "3.png").write_bytes((work / "images" / "3.png").read_bytes()[:100])
    out = tmp_path / "deep" / "answers.jsonl"
    command = ["predict", str(bundle), f"{work}/annotations.json", "--root", f"{tmp_path}/images", "--out", str(out)]
    assert main([*command, "--max-new-tokens", "4"]) == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"s{number}" for number in range(24)]
    assert ["error" in row for row in rows] == [number in (2, 3) for number in range(24)]
    assert rows[0]["reference"] == "red" and isinstance(rows[0]["prediction"], str)
    assert "2 of 24" in capsys.readouterr().err


def test_predict_keeps_samples_of_one_id_apart(work: Path, bundle: Path, tmp_path: Path) -> None:
    rows = json.loads((work / "annotations.json").read_text())[:4]
    rows[1]["image"] = ["gone.png"]
    (tmp_path / "one.json").write_text(json.dumps([{**row, "id": "same"} for row in rows]))
    (tmp_path / "own.json").write_text(json.dumps(rows))
    for name in ("one", "own"):
        command = ["predict", str(bundle), f"{tmp_path}/{name}.json", "--root", f"{work}/images", "--device", "cpu"]
        assert main([*command, "--out", f"{tmp_path}/{name}.jsonl", "--max-new-tokens", "4"]) == 1
    one, own = (
        [json.loads(line) for line in (tmp_path / f"{n}.jsonl").read_text().splitlines()] for n in ("one", "own")
    )
    assert [row["id"] for row in one] == ["same"] * 4
    assert [row.get("prediction") for row in one] == [row.get("prediction") for row in own]
    assert "'same'" in one[1]["error"] and "gone.png" in one[1]["error"]


def test_predict_tells_boxes_in_the_frame_of_the_file(
    work: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from medmvl.bundle import Bundle

    Image.new("RGB", (200, 100)).save(tmp_path / "wide.png")
    content = [{"type": "image", "path": "wide.png"}, {"type": "text", "text": "where?"}]
    answer = {"role": "assistant", "content": [{"type": "box", "box": 0}]}
    sample = {
        "id": "box",
        "messages": [{"role": "user", "content": content}, answer],
        "meta": {"boxes": [{"media": 0, "coords": [20, 10, 120, 60]}]},
    }
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample))
    said = "It is [10, 10, 60, 60]."
    monkeypatch.setattr(Bundle, "generate_each", lambda self, samples, **_: enumerate([said] * len(samples)))
    assert main(["predict", str(bundle), f"{tmp_path}/samples.jsonl", "--out", f"{tmp_path}/out.jsonl"]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert row["prediction"] == said and row["reference_boxes"] == [[20, 10, 120, 60]]
    assert row["boxes"] == [pytest.approx([20, 10, 120, 60], abs=1)]


def test_a_device_that_is_not_there_is_told(work: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(bundle), f"{work}/annotations.json", "--device", "cudda"]) == 2
    assert "--device cudda" in capsys.readouterr().err


CONNECTOR = """
from torch import nn
class Own(nn.Module):
    def __init__(self, grid, width_in, width_out):
        super().__init__()
        self.num_tokens, self.map = 1, nn.Linear(width_in, width_out)
    def forward(self, x):
        return self.map(x).mean(dim=1, keepdim=True)
"""


def test_a_bundle_with_code_of_its_own_asks_first(
    work: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_connectors.py").write_text(CONNECTOR)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["model.towers.image.connector=own_connectors:Own", "stages.only.steps=1"]
    assert main(["train", f"{work}/recipe.yaml", *own, f"run.output={tmp_path}/first"]) == 0
    start = [f"init_from={tmp_path}/first", f"run.output={tmp_path}/second"]
    predict = ["predict", f"{tmp_path}/first/bundle", f"{work}/annotations.json", "--root", f"{work}/images"]
    capsys.readouterr()
    for command in (predict, ["check", f"{work}/recipe.yaml", "model=null", *start]):
        assert main(command) == 2
        assert "--allow-code own_connectors" in capsys.readouterr().err
    assert main([*predict, "--allow-code", "own_connectors", "--max-new-tokens", "2"]) == 0
    assert main(["train", f"{work}/recipe.yaml", *own, *start]) == 0  # the recipe names the package itself


def test_predict_says_what_is_no_bundle(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(work), f"{work}/annotations.json", "--root", f"{work}/images"]) == 2
    assert "no bundle" in capsys.readouterr().err


def test_eval(work: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "colour.yaml").write_text(
        "name: mine/colour\nversion: '1.0'\ntitle: Colour\nfamily: classification\nsource: colours\nsplit: train\n"
        "answer: text\nmetrics: [accuracy_strict]\ngeneration: {max_new_tokens: 4}\n"
    )
    command = ["eval", str(bundle), f"{tmp_path}/colour.yaml", "--data", f"{work}/data", "--data", f"{work}/images"]
    assert main([*command, "--out", f"{tmp_path}/scores"]) == 0
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["tasks"]["mine/colour"]["n"] == 24
    assert "Colour" in (shown := capsys.readouterr().out) and "report.html" in shown


def test_chat(work: Path, bundle: Path) -> None:
    said = f"Which colour?\n/image nothing.png\n/image {work}/images/1.png\nAnd this?\n/new\n/what\nHello\n/quit\n"
    command = [sys.executable, "-m", "medmvl", "chat", str(bundle), "--image", f"{work}/images/0.png"]
    done = subprocess.run([*command, "--max-new-tokens", "4"], input=said, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("you: ") == 8
    assert "no file 'nothing.png'" in done.stdout and "unknown command '/what'" in done.stdout
