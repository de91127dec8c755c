"""A model that reads volume and question together: packed, generated, saved, trained like any other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

import medmvl
import tiny_dual
from medmvl.cli.main import main
from medmvl.data.store import write_samples
from medmvl.processing import encoded
from medmvl.processing.collate import collate
from medmvl.processing.pack import arrange
from medmvl.train.run import train

FULL = {"mode": "full", "lr": 1e-3}
CONV = {"encoder": "conv", "encoder_options": {"channels": [8, 8, 8], "image_size": 16}}
A, B, PICTURE = "a.nii.gz", "b.nii.gz", "p.png"
ASKED = [
    ([((A,), "where is it?", "left")]),
    ([((A,), "how large is the lesion?", "large")]),
    ([((B,), "where is it?", "right")]),
    ([((A,), "where is it?", "on the left side")]),
    ([((A, B), "which side is it?", "left"), ((), "why?", "so")]),
    ([((PICTURE, A), "which side?", "right")]),
    ([((PICTURE,), "which side?", "left")]),
    ([((), "Say hello.", "hello")]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("dual")
    tiny_dual.write_parts(found)
    tiny_dual.write_volumes(found)
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16), np.uint8)).save(found / PICTURE)
    return found


@pytest.fixture(scope="module")
def bundle(folder: Path) -> medmvl.Bundle:
    return tiny_dual.bundle(folder, image=CONV)


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[medmvl.Sample]:
    return [tiny_dual.sample(folder, str(number), *turns) for number, turns in enumerate(ASKED)]


def test_packed_equals_unpacked(bundle: medmvl.Bundle, samples: list[medmvl.Sample], monkeypatch) -> None:
    reads = []
    real = encoded.read_volume
    monkeypatch.setattr(encoded, "read_volume", lambda path: (reads.append(path), real(path))[1])
    found = {}
    for packed in (True, False):
        bundle.model.zero_grad()
        loss = bundle.loss(samples, packed=packed)
        loss.backward()
        grads = {name: p.grad.clone() for name, p in bundle.model.named_parameters() if p.grad is not None}
        found[packed] = loss.item(), grads
    assert len(reads) == 2 * 2, "each volume is read once, however many questions are about it"
    assert found[True][0] == pytest.approx(found[False][0], abs=1e-5)
    for name, gradient in found[True][1].items():
        assert (gradient - found[False][1][name]).norm() <= 1e-4 * max(1.0, gradient.norm().item()), name
    connector = {name for name in found[True][1] if ".volume.connector." in f".{name}"}
    assert len(connector) == 10 and all(found[True][1][name].abs().max() > 0 for name in connector)
    assert found[True][1]["towers.volume.encoder.text.model.embeddings.word_embeddings.weight"].abs().max() > 0


def test_mixed_rows_give_the_losses_of_the_samples_alone(bundle: medmvl.Bundle, samples: list[medmvl.Sample]) -> None:
    tokens = [sum(int((b.labels != -100).sum()) for b in bundle.processor.encode(one).branches) for one in samples]
    alone = [bundle.loss([one]).item() for one in samples]
    mean = sum(loss * count for loss, count in zip(alone, tokens, strict=True)) / sum(tokens)
    assert bundle.loss(samples).item() == pytest.approx(mean, abs=1e-5)


def test_media_tokens_depend_on_the_question(bundle: medmvl.Bundle, samples: list[medmvl.Sample]) -> None:
    pool: dict = {}
    found = [bundle.processor.prompt(one, pool) for one in samples[:4]]
    rows, _ = arrange(found, 10_000)
    assert [group.sample_ids for row in rows for group in row.groups] == [("0", "3"), ("1",), ("2",)]
    tower = bundle.model.towers["volume"]
    (batch,) = (collate(row) for row in rows)
    assert batch.pixels["volume"].shape[0] == 2
    with torch.no_grad():
        media = tower(batch.pixels["volume"], **batch.questions["volume"])
    assert media.shape == (3, tower.num_tokens, 32)
    volume = tower.connector.volume.num_tokens
    assert torch.equal(media[0, :volume], media[1, :volume]), "the 3D branch sees the volume alone"
    assert (media[0, volume:] - media[1, volume:]).abs().max() > 1e-3


def test_generation_is_the_same_at_every_batch_size(bundle: medmvl.Bundle, samples: list[medmvl.Sample]) -> None:
    together = bundle.generate(samples, max_new_tokens=6)
    assert together == [bundle.generate([one], max_new_tokens=6)[0] for one in samples]
    assert "".join(bundle.stream(samples[4], max_new_tokens=6)) == together[4]
    unanswered = samples[0].prompt()
    assert bundle.score_options(samples[0], ["left", "right"]) == bundle.score_options(unanswered, ["left", "right"])


def test_saved_and_loaded_gives_the_same_logits(folder: Path, samples: list[medmvl.Sample], tmp_path: Path) -> None:
    tiny_dual.write_parts(tmp_path)
    bundle = tiny_dual.bundle(tmp_path, image=CONV)
    bundle.save(tmp_path / "bundle")
    for part in ("bert", "tokenizer"):
        (tmp_path / part).rename(tmp_path / f"no_{part}")  # a bundle needs nothing but itself
    assert str(tmp_path) not in (tmp_path / "bundle" / "bundle.json").read_text()
    again = medmvl.load(tmp_path / "bundle")
    assert again.hash == bundle.hash
    for one in samples:
        assert torch.equal(bundle.logits(one), again.logits(one))
    again.save(tmp_path / "twice")
    assert torch.equal(medmvl.load(tmp_path / "twice").logits(samples[0]), bundle.logits(samples[0]))


def test_the_slices_may_share_the_image_towers_encoder(folder: Path, samples: list[medmvl.Sample], tmp_path) -> None:
    options = {**tiny_dual.tower(folder)["encoder_options"], "slices": {"encoder": "image"}}
    image = {"encoder": {"architecture": tiny_dual.SIGLIP}}
    bundle = tiny_dual.bundle(folder, image=image, volume=tiny_dual.tower(folder, encoder_options=options))
    dual = bundle.model.towers["volume"].encoder
    assert dual.shares == "image.encoder" and not list(dual.slices.parameters())
    bundle.loss(samples[:1]).backward()
    assert bundle.model.towers["image"].encoder.model.embeddings.patch_embedding.weight.grad.abs().max() > 0
    bundle.save(tmp_path / "bundle")
    assert torch.equal(medmvl.load(tmp_path / "bundle").logits(samples[0]), bundle.logits(samples[0]))


def make_recipe(folder: Path, root: Path, **run: object) -> dict:
    """Return a recipe of both stages of Med-2E3: the connector, then the 2D encoder and the LLM too."""
    (root / "data" / "noise").mkdir(parents=True)
    tiny_dual.write_volumes(root / "data" / "noise")
    shown = [turns for turns in ASKED if all(PICTURE not in paths for paths, _, _ in turns)]
    written = [
        tiny_dual.sample(root / "data" / "noise", str(number), *turns, split="train", task="noise/vqa")
        for number, turns in enumerate(shown)
    ]
    write_samples(root / "data" / "noise", written, name="noise", version="1", licence="none")
    llm = {"architecture": tiny_dual.LLM, "tokenizer": str(folder / "tokenizer")}
    align = {"volume.connector": FULL}
    instruct = {"volume.connector": FULL, "volume.encoder.slices": FULL, "llm": FULL}
    stage = {"global_batch": 3, "data": [{"source": "noise"}]}
    return {
        "model": {"llm": llm, "towers": {"volume": tiny_dual.tower(folder)}},
        "stages": [
            {"name": "align", "tune": align, "steps": 2, **stage},
            {"name": "instruct", "tune": instruct, "steps": 2, **stage},
        ],
        "run": {
            "output": str(root / "run"),
            "data_roots": [str(root / "data")],
            "max_tokens": 256,
            "row_tokens": 512,
            "workers": 0,
            "trackers": [],
            "strategy": "single",
            "precision": "fp32",
            **run,
        },
    }


def test_a_run_trains_both_stages_and_check_tells_about_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(folder, tmp_path, activation_checkpointing=["volume.encoder"])
    with (tmp_path / "recipe.yaml").open("w") as opened:
        YAML().dump(recipe, opened)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 0
    told = capsys.readouterr().out
    assert "192 tokens x 16 and 12" in told and "text_guided, temperature 0.1: 24 tokens" in told, told

    run = train(recipe)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) >= 2 and np.isfinite(losses).all()
    trained = medmvl.load(run / "bundle")
    start = medmvl.Bundle.build(recipe["model"]).model.towers["volume"].encoder
    own = trained.model.towers["volume"].encoder
    text = [torch.equal(p, q) for p, q in zip(own.text.parameters(), start.text.parameters(), strict=True)]
    assert all(text), "the text encoder is as it was"
    assert trained.generate(make_samples(tmp_path), max_new_tokens=3)


def make_samples(root: Path) -> list[medmvl.Sample]:
    return [tiny_dual.sample(root / "data" / "noise", "one", ((A,), "where is it?", None))]


def test_rows_without_a_volume_run_the_tower_blank(bundle: medmvl.Bundle, samples: list[medmvl.Sample]) -> None:
    from medmvl.data.mixture import Position, Step
    from medmvl.train.feed import ChatPreparer

    prepare = ChatPreparer(
        read=lambda item: samples[item[1]],
        processor=bundle.processor,
        row_tokens=512,
        position_limit=bundle.model.position_limit,
        towers=["volume", "image"],
        drop_media=[False],
        augmentation=None,
        seed=(0, 0),
        rank=0,
        world=1,
    )
    (batch,) = prepare(Step((((0, 7),),), Position())).batches
    for one in (batch, prepare.filler()):
        assert one.questions["volume"]["source"].tolist() == [0] and len(one.media_positions["volume"]) == 0
        bundle.model.zero_grad()
        bundle.model(**one.model_inputs()).loss.backward()
        grads = [p.grad for p in bundle.model.towers["volume"].connector.parameters()]
        assert all(grad is not None and not grad.any() for grad in grads)


def test_objectives_without_questions_refuse_the_encoder(folder: Path, tmp_path: Path) -> None:
    recipe = make_recipe(folder, tmp_path)
    recipe["stages"] = [{**recipe["stages"][0], "objective": "heads", "tune": {"volume.encoder": FULL}}]
    with pytest.raises(
        ValueError, match="objective heads shows pictures without a question, which the encoder of tower"
    ):
        train(recipe)
