"""Recipes: what ships is valid, what is wrong is told all at once, and none of it needs torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medmvl.core import shipped
from medmvl.core.config import ConfigError
from medmvl.model.config import shipped_architecture
from medmvl.train.recipe import RECIPES, Data, Recipe, passes
from medmvl.train.sources import status

NAMES = shipped.names("recipes", ".yaml")
MINIMAL = {
    "model": {"llm": "org/llm", "towers": {"image": {"encoder": "org/vit"}}},
    "stages": [
        {
            "name": "align",
            "epochs": 1,
            "global_batch": 8,
            "data": [{"source": "brain_atlas"}],
            "tune": {"image.connector": {"mode": "full", "lr": 1e-3}},
        }
    ],
}


def wrong(*overrides: str, recipe: object = MINIMAL) -> str:
    with pytest.raises(ConfigError) as caught:
        Recipe.load(recipe, overrides)  # type: ignore[arg-type]
    return str(caught.value)


def test_formats_of_boxes_are_named() -> None:
    assert Recipe.load("medm_vl_2d").model.boxes == "unimed" and Recipe.load("m3d_lamed").model.boxes == "m3d"
    assert Recipe.load("llava_med").model.boxes == "0-100" and Recipe.load(MINIMAL, ["model.boxes=0-1"])
    message = wrong("model.boxes=uni_med")
    assert "model.boxes: unknown box format 'uni_med'; did you mean 'unimed'?" in message and "0-1000" in message


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipes(name: str, tmp_path: Path) -> None:
    recipe = Recipe.load(name)
    assert recipe.run.output in (f"runs/{name}", "runs/demo/2d", "runs/demo/3d")
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(recipe.to_yaml())
    assert Recipe.load(resolved) == recipe
    head = (RECIPES / f"{name}.yaml").read_text().split("\n\n")[0]
    assert f"medmvl check {name}" in head or f"medmvl train {name}" in head or "medmvl demo" in head
    for data in (data for stage in recipe.stages for data in stage.data):
        found = status(data, ["nowhere"])
        assert not found.fatal, found.note
        assert "not here" in found.note and "nowhere/" in found.note


@pytest.mark.parametrize("name", NAMES)
def test_names_in_shipped_recipes_resolve_offline(name: str) -> None:
    model = Recipe.load(name).model
    assert model is not None
    for source in [model.llm.path, *(tower.encoder.path for tower in model.towers.values())]:
        if source is not None and "/" in source:
            assert shipped_architecture(source) is not None


def test_medm_vl_2d_has_the_papers_numbers() -> None:
    recipe = Recipe.load("medm_vl_2d")
    align, instruct = recipe.stages
    assert (align.epochs, align.global_batch, align.tune["image.connector"].lr) == (1, 256, 1e-3)
    assert set(align.tune) == {"image.connector"} and align.template == "pretrain"
    assert (instruct.epochs, instruct.global_batch, instruct.template) == (3, 128, "vicuna")
    assert {part: rule.lr for part, rule in instruct.tune.items()} == {
        "image.encoder": 2e-5,
        "image.connector": 2e-5,
        "llm": 2e-5,
    }
    assert all((stage.warmup, stage.weight_decay) == (0.03, 0.0) for stage in recipe.stages)
    assert (recipe.run.strategy, recipe.run.precision, recipe.run.max_tokens) == ("zero3", "bf16", 2048)
    assert recipe.model is not None and recipe.model.towers["image"].layer == -1
    shares = {data.source: data.share for data in instruct.data}
    assert shares["mimic_cxr/report"] == 8 and shares["slake/vqa"] == 5 and sum(shares.values()) == 50  # type: ignore[arg-type]


def test_defaults_and_overrides() -> None:
    recipe = Recipe.load(MINIMAL, ["run.max_tokens=512", "stages.align.tune.llm={mode: lora, lr: 1e-4}"])
    assert recipe.run.row_tokens == 512 and recipe.run.output == "runs/recipe"
    rule = recipe.stages[0].tune["llm"]
    assert (rule.rank, rule.alpha, rule.dropout) == (128, 256.0, 0.05)
    assert recipe.model is not None and recipe.model.towers["image"].connector == "mlp"


def test_many_typos_are_answered_at_once() -> None:
    message = wrong(
        "run.sed=1",
        "run.strategy=zero4",
        "model.towers.image.conector=mlp",
        "model.towers.image.connector=mpl",
        "model.template=vicunna",
        "model.towers.image.encoder=covn",
        "stages.align.tune.lmm.mode=full",
        "stages.align.tune.volume.encoder={mode: full, lr: 1e-3}",
        "stages.align.objective=chta",
        "stages.align.augmentation={rotat: 3}",
        "model.towers.image.spec={siez: [1, 2]}",
    )
    for said in (
        "'seed'",
        "'zero3'",
        "'connector'",
        "'mlp'",
        "'vicuna'",
        "'conv'",
        "'llm'",
        "'chat'",
        "'rotate'",
        "'size'",
    ):
        assert f"did you mean {said}" in message
    assert "stages[0].tune.volume.encoder: matches no part of this model" in message
    assert message.startswith("recipe: ") and len(message.splitlines()) >= 12


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.align.steps=3", "either 'epochs', 'steps' or 'tokens'"),
        ("stages.align.tune.image.connector={mode: full}", "needs a learning rate"),
        ("stages.align.tune.image.connector={mode: frozen, lr: 1.0}", "takes no 'lr'"),
        ("stages.align.tune.image.connector={mode: frozen}", "nothing would learn"),
        ("stages.align.tune.image.connector={mode: full, lr: 1.0, rank: 8}", "only for mode lora"),
        ("stages.align.tune={}", "at least 1"),
        ("stages=[]", "at least 1"),
        ("stages.align.global_batch=0", "greater than or equal to 1"),
        ("stages.align.global_batch=8.5", "valid integer"),
        ("stages.align.name=a/b", "should match pattern"),
        ("run.row_tokens=100", "at least max_tokens"),
        ("run.precision=fp16", "Choices: auto, bf16, fp32"),
        ("run.activation_checkpointing=[volume.encoder]", "matches no part of this model"),
        ("run.activation_checkpointing=[image]", "no part of a model"),
        ("stages.align.tune.volume.encoder.x={mode: full, lr: 1.0}", "matches no part of this model"),
        ("model=null", "required unless 'init_from'"),
        ("model.llm={path: a/b, architecture: {model_type: qwen2}}", "either 'path'"),
        ("model.llm={architecture: {hidden_size: 8}}", "'model_type' is missing"),
        ("model.llm={pth: a/b}", "did you mean 'path'"),
        ("model.towers.imgae={encoder: a/b}", "did you mean 'image'"),
        ("stages.align.data=[{source: a, share: 1}, {source: b}]", "for every source"),
        ("stages.align.data=[{source: a, share: 1, weight: 2}]", "not both"),
        ("stages.algin.epochs=2", "did you mean 'align'"),
    ],
)
def test_single_mistakes(override: str, said: str) -> None:
    assert said in wrong(override)


def test_stage_names_are_unique() -> None:
    twice = MINIMAL | {"stages": [*MINIMAL["stages"], *MINIMAL["stages"]]}  # type: ignore[misc]
    assert "stages[1].name: 'align' is an earlier stage's name" in wrong(recipe=twice)


def test_init_from_may_stand_for_the_model() -> None:
    recipe = Recipe.load(MINIMAL, ["model=null", "init_from=runs/a/bundle"])
    assert recipe.model is None and recipe.init_from == "runs/a/bundle"


def test_passes_and_shares() -> None:
    assert passes([Data(source="a"), Data(source="b", weight=0.5)], [10, 20]) == [1.0, 0.5]
    shares = passes([Data(source="a", share=1.0), Data(source="b", share=3.0)], [10, 30])
    assert [round(p * n) for p, n in zip(shares, [10, 30], strict=True)] == [10, 30]
    shares = passes([Data(source="a", share=1.0), Data(source="b", share=1.0)], [10, 30])
    assert [round(p * n) for p, n in zip(shares, [10, 30], strict=True)] == [20, 20]


def test_schema_for_editors() -> None:
    schema = json.loads(json.dumps(Recipe.model_json_schema()))
    assert {"extends", "init_from", "model", "stages", "run"} == set(schema["properties"])
    llm = schema["$defs"]["ModelConfig"]["properties"]["llm"]
    assert {"type": "string"} in llm["anyOf"]


def test_no_torch_for_a_recipe_with_typos() -> None:
    code = (
        "import sys\n"
        "from medmvl.train.recipe import Recipe\n"
        "try: Recipe.load('medm_vl_2d', ['run.sed=1', 'run.strtegy=ddp', 'stages.align.epoch=1'])\n"
        "except ValueError as error: print(error)\n"
        "print(sorted({'torch', 'transformers', 'accelerate', 'rich', 'typer'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "3 mistakes" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


VIT3D = {"encoder": "vit3d", "connector": "mlp"}
CONV_SLICES = {"encoder": "slices", "encoder_options": {"encoder": "conv", "slices": 2}}


@pytest.mark.parametrize(
    ("towers", "tune", "carried", "expected"),
    [
        ({"volume": VIT3D}, {}, [], ["volume.encoder"]),
        ({"volume": VIT3D}, {"volume.*": "full"}, [], []),
        ({"volume": VIT3D}, {"volume.encoder": "lora"}, [], ["volume.encoder"]),
        ({"volume": VIT3D}, {}, ["llm", "volume.encoder"], []),
        ({"volume": VIT3D | {"encoder_options": {"weights": "x.safetensors"}}}, {}, [], []),
        ({"volume": VIT3D | {"encoder": "GoodBaiBai88/M3D-CLIP"}}, {}, [], []),
        ({"volume": CONV_SLICES}, {}, [], ["volume.encoder"]),
        ({"volume": CONV_SLICES}, {}, ["volume.encoder.inner"], []),
        (
            {"image": {"encoder": "org/siglip"}, "volume": {"encoder": "slices", "options": {"encoder": "image"}}},
            {},
            [],
            [],
        ),
        (
            {"volume": {"encoder": "dual", "options": {"volume": VIT3D, "slices": {"encoder": "a/b"}, "text": "c/d"}}},
            {},
            [],
            ["volume.encoder"],
        ),
        ({"image": {"encoder": {"architecture": {"model_type": "vit"}}}}, {}, [], ["image.encoder"]),
    ],
)
def test_parts_that_would_stay_random_are_told(towers: dict, tune: dict, carried: list, expected: list) -> None:
    stage = {"name": "s", "epochs": 1, "global_batch": 1, "data": [{"source": "a"}]}
    rules = {"llm": {"mode": "full", "lr": 1.0}, **{name: {"mode": mode, "lr": 1.0} for name, mode in tune.items()}}
    recipe = Recipe.load({"model": {"llm": "org/llm", "towers": towers}, "stages": [stage | {"tune": rules}]})
    assert recipe.left_random(carried) == expected


def test_an_override_is_told_where_it_does_not_fit_its_file(tmp_path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(Recipe.load(MINIMAL).to_yaml())
    with pytest.raises(ConfigError, match=r"line \d+ with override 'run.row_tokens=100': run: row_tokens 100"):
        Recipe.load(path, ["run.row_tokens=100"])
    path.write_text(path.read_text().partition("\nrun:")[0] + "\n")  # all of `run` is the override's then
    with pytest.raises(ConfigError, match=r"  override 'run.row_tokens=100': run: row_tokens 100"):
        Recipe.load(path, ["run.row_tokens=100"])
