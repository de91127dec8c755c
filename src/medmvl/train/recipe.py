"""The recipe: how a bundle is made, as settings that are checked before torch is imported."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from medmvl.core import config, shipped
from medmvl.core.config import Strict
from medmvl.core.lookup import choices_text
from medmvl.imaging.augment import Augmentation
from medmvl.model.config import PARTS, ModelConfig, TemplateName, TuneRule, matches, part_pattern, tune_pattern

RECIPES = shipped.PACKAGE / "recipes"
LEFT_RANDOM = "%s has random weights, and no stage trains it in full: give it weights, or a rule in `tune`"
PartPattern = Annotated[str, AfterValidator(part_pattern)]
TunePattern = Annotated[str, AfterValidator(tune_pattern)]
TaskShare = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Data(Strict):
    """One source of samples in a mixture."""

    source: str = Field(min_length=1, description='"brain_atlas", one task "brain_atlas/side", or a folder of samples')
    split: str = "train"
    tasks: list[str] | dict[str, TaskShare] | None = Field(
        None, description="only these tasks; with a number behind each, that is its part of this source; default all"
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="parts of its tasks in proportion to samples ** (1 / temperature): 1 as they are, 2 evener",
    )
    weight: float = Field(1.0, gt=0, description="passes over it per epoch")
    share: float | None = Field(
        None, gt=0, description="instead of weight: its part of an epoch, relative to the others"
    )
    media: Literal["keep", "drop"] = Field("keep", description="drop: text only, the media are left out")

    @model_validator(mode="after")
    def _one_measure_of_tasks(self) -> Self:
        if isinstance(self.tasks, dict) and self.temperature is not None:
            raise ValueError("tasks have parts by number or by 'temperature', not both")
        if self.tasks is not None and not self.tasks:
            raise ValueError("tasks: name at least one, or leave it out for all")
        return self

    @property
    def by_task(self) -> bool:
        """Whether its tasks have parts of their own."""
        return isinstance(self.tasks, dict) or self.temperature is not None


def _one_measure(data: list[Data]) -> list[Data]:
    """Refuse a mixture that counts some sources in passes and others in shares."""
    shared = [one.share is not None for one in data]
    if any(shared) and not all(shared):
        raise ValueError("give 'share' for every source of the mixture, or for none")
    if any(one.weight != 1 for one in data if one.share is not None):
        raise ValueError("a source takes 'weight' (passes per epoch) or 'share' (part of an epoch), not both")
    return data


Sources = Annotated[list[Data], Field(min_length=1), AfterValidator(_one_measure)]


def passes(data: Sequence[Data], lengths: Sequence[int], temperature: float | None = None) -> list[float]:
    """Return how often an epoch passes over each source.

    Args:
        data: the sources of one mixture.
        lengths: their samples. With shares an epoch is as long as all of them together.
        temperature: shares in proportion to samples ** (1 / temperature), instead of those of the sources.
    """
    if temperature is not None:
        shares = [length ** (1 / temperature) for length in lengths]
    elif data[0].share is None:
        return [one.weight for one in data]
    else:
        shares = [one.share or 0.0 for one in data]
    scale = sum(lengths) / sum(shares)
    return [share * scale / length for share, length in zip(shares, lengths, strict=True)]


class Validation(Strict):
    """Loss on held-out samples while training."""

    data: Sources
    every: int = Field(500, ge=1, description="optimizer steps between two validations")
    samples: int = Field(256, ge=1, description="how many samples, the same ones every time")


class Stage(Strict):
    """One stage: data, what learns, and for how long."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    objective: Literal["chat", "heads", "contrastive"] = Field(
        "chat",
        description="chat: next token; heads: meta.attributes from the encoder; contrastive: image-text (SigLIP)",
    )
    epochs: int | None = Field(None, ge=1, description="passes over the mixture; give this, steps or tokens")
    steps: int | None = Field(None, ge=1, description="optimizer steps")
    tokens: int | None = Field(
        None, ge=1, description="tokens to show, media included; turned into steps by the mean length of samples"
    )
    global_batch: int = Field(ge=1, description="samples per optimizer step over all devices, exactly")
    data: Sources
    temperature: float | None = Field(
        None, gt=0, description="sources have parts in proportion to samples ** (1 / temperature); instead of shares"
    )
    questions_per_image: int = Field(
        8, ge=1, description="samples of one image that may share a row; the rest come later"
    )
    tune: dict[TunePattern, TuneRule] = Field(min_length=1, description="part pattern -> rule; not named = frozen")
    template: TemplateName | None = Field(None, description="instead of the model's template, for this stage")
    warmup: float = Field(0.03, ge=0, description="share of the steps, or their number from 1 on; then cosine to zero")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 = no clipping")
    augmentation: Augmentation | None = None
    validation: Validation | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sum(length is not None for length in (self.epochs, self.steps, self.tokens)) != 1:
            raise ValueError("give either 'epochs', 'steps' or 'tokens'")
        if self.tokens is not None and self.objective != "chat":
            raise ValueError(f"tokens: objective {self.objective} reads no text; give 'epochs' or 'steps'")
        if self.temperature is not None and any(one.share is not None or one.weight != 1 for one in self.data):
            raise ValueError("sources have parts by 'temperature' or by 'share' and 'weight', not both")
        if all(rule.mode == "frozen" for rule in self.tune.values()):
            raise ValueError("tune: every part is frozen, nothing would learn; choose mode full or lora for one part")
        return self


class Run(Strict):
    """Where and how it runs; changes speed and memory, not what is learnt (apart from seed and precision)."""

    output: str | None = Field(None, description="folder of the run; default runs/NAME")
    strategy: Literal["auto", "single", "ddp", "fsdp2", "zero3"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16 is autocast; trained weights stay fp32"
    )
    max_tokens: int = Field(2048, ge=16, description="longest sample, media tokens included; longer ones are refused")
    row_tokens: int = Field(2048, ge=16, description="tokens per device and micro-step; default max_tokens")
    seed: int = Field(0, ge=0)
    workers: int = Field(2, ge=0, description="processes that load data, per device; 0 = load in the loop")
    save_every: int = Field(500, ge=1, description="optimizer steps between two checkpoints")
    max_refused: float = Field(
        0.1, ge=0, le=1, description="share of a stage's samples that may be unusable before the run stops"
    )
    keep_last: int = Field(2, ge=1, description="checkpoints that stay, beside the best one")
    log_every: int = Field(10, ge=1, description="optimizer steps between two lines of the log")
    trackers: list[Literal["tensorboard", "wandb"]] = Field(default_factory=lambda: ["tensorboard"])
    prepared: str | None = Field(
        "runs/prepared",
        min_length=1,
        description="folder that keeps prepared volumes for all runs; null: prepare them at every use",
    )
    features: str | None = Field(
        "runs/features",
        min_length=1,
        description="folder that keeps what frozen encoders make of media, for all runs, where that is faster than "
        "computing it; null: compute it at every use",
    )
    profile: bool = Field(False, description="tell where the time goes: profile/STAGE.txt, and a trace of one step")
    compile: bool = Field(
        False, description="torch.compile the blocks of encoders and LLM: minutes once, then faster on GPUs"
    )
    activation_checkpointing: list[PartPattern] = Field(default_factory=list, description="parts that recompute")
    data_roots: list[str] = Field(
        default_factory=lambda: ["data"], description="folders in which sources are looked up"
    )

    @model_validator(mode="before")
    @classmethod
    def _row_defaults_to_longest_sample(cls, data: object) -> object:
        if isinstance(data, Mapping) and "max_tokens" in data:
            return {"row_tokens": data["max_tokens"], **data}
        return data

    @model_validator(mode="after")
    def _row_holds_a_sample(self) -> Self:
        if self.row_tokens < self.max_tokens:
            raise ValueError(
                f"row_tokens {self.row_tokens} must be at least max_tokens {self.max_tokens}: a sample is never cut"
            )
        return self


class Recipe(Strict):
    """How a bundle is made: model, stages, run."""

    extends: str | None = Field(None, description="a recipe of which this one states only the difference")
    init_from: str | None = Field(
        None, description="bundle whose weights (and model, when none is given) to start from"
    )
    model: ModelConfig | None = None
    stages: list[Stage] = Field(min_length=1)
    run: Run = Run()

    @model_validator(mode="wrap")
    @classmethod
    def _all_mistakes(cls, data: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        # Checks across fields look at the raw data, so that a typo elsewhere does not hide what they find.
        wrong = list(_across(data)) if isinstance(data, Mapping) else []
        try:
            recipe = validate(data)
        except ValidationError as error:
            keys = ("type", "loc", "input", "ctx")
            wrong = [*({key: item[key] for key in keys if key in item} for item in error.errors()), *wrong]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return recipe

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> "Recipe":
        """Read a recipe (YAML file, name of a shipped one, or decoded mapping) and apply "a.b=value" overrides.

        Raises:
            ConfigError: every mistake, with file, line, path, and the nearest key or all choices.
        """
        recipe = config.load(cls, source, overrides, shipped=RECIPES)
        if recipe.run.output is not None:
            return recipe
        name = "recipe" if isinstance(source, Mapping) else Path(source).stem
        return recipe.model_copy(update={"run": recipe.run.model_copy(update={"output": f"runs/{name}"})})

    def left_random(self, carried: Sequence[str] = ()) -> list[str]:
        """Return the parts that would stay random to the end: no weights, none carried over, and no stage learns them.

        Args:
            carried: parts, or modules of parts, that take weights from `init_from`.
        """
        rules = [(pattern, rule) for stage in self.stages for pattern, rule in stage.tune.items()]
        learned = [pattern for pattern, rule in rules if rule.mode == "full"]
        return [
            part
            for part in (self.model.random_parts if self.model else ())
            if not any(matches([part], pattern) for pattern in learned)
            and not any(name == part or name.startswith(f"{part}.") for name in carried)
        ]

    def to_yaml(self) -> str:
        """Return the resolved recipe, every default written out; it is itself a recipe."""
        return config.dump_yaml(self.model_dump(mode="json"))


def _across(data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    """Yield what is wrong between fields of a raw recipe: missing model, repeated stage, rule for a part it lacks."""
    model, stages, run = data.get("model"), data.get("stages"), data.get("run")
    if model is None and data.get("init_from") is None:
        yield _mistake(("model",), model, "required unless 'init_from' names a bundle to start from")
    stages = [stage if isinstance(stage, Mapping) else {} for stage in stages] if isinstance(stages, list) else []
    names = [stage.get("name") for stage in stages]
    for index, name in enumerate(names):
        if name is not None and name in names[:index]:
            yield _mistake(("stages", index, "name"), name, f"{name!r} is an earlier stage's name; choose another")
    towers = model.get("towers") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(towers or {}, Mapping):
        return
    parts = [part for part in PARTS if part == "llm" or part.partition(".")[0] in (towers or {})]
    rules = [stage.get("tune") for stage in stages]
    named = [
        (("stages", i, "tune", key), key) for i, rule in enumerate(rules) if isinstance(rule, Mapping) for key in rule
    ]
    recomputed = run.get("activation_checkpointing") if isinstance(run, Mapping) else None
    if isinstance(recomputed, list):
        named += [(("run", "activation_checkpointing", i), pattern) for i, pattern in enumerate(recomputed)]
    for keys, pattern in named:
        if isinstance(pattern, str) and matches(PARTS, pattern) and not matches(parts, pattern):
            hint = choices_text(pattern, parts, "parts")
            yield _mistake(keys, pattern, f"matches no part of this model; {hint}. Remove it, or add the tower")


def _mistake(keys: tuple[str | int, ...], given: object, message: str) -> InitErrorDetails:
    return InitErrorDetails(type="value_error", loc=keys, input=given, ctx={"error": ValueError(message)})
