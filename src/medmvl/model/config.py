"""What a model is made of and which of its parts learn: settings only, no torch."""

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from medmvl.core import shipped
from medmvl.core.boxes import BOX_FORMATS, box_format_name
from medmvl.core.config import Strict
from medmvl.core.lookup import choices_text
from medmvl.imaging.spec import VisionSpec

CONNECTORS = {
    "linear": "medmvl.model.connectors:Linear",
    "mlp": "medmvl.model.connectors:Mlp",
    "pool": "medmvl.model.connectors:Pool",
    "average": "medmvl.model.connectors:Average",
    "attention": "medmvl.model.connectors:Attention",
    "attention_pool": "medmvl.model.connectors:AttentionPool",
    "perceiver": "medmvl.model.connectors:Perceiver",
    "text_guided": "medmvl.model.guided:TextGuided",
}
ENCODERS = {
    "conv": "medmvl.model.encoders.conv:ConvEncoder",
    "slices": "medmvl.model.encoders.slices:Slices",
    "dual": "medmvl.model.encoders.dual:Dual",
    "vit3d": "medmvl.model.encoders.vit3d:Vit3d",
    "medm_clip_ct": "medmvl.model.encoders.medm_clip_ct:MedMClipCt",
    "ct_vit": "medmvl.model.encoders.ct_vit:CtVit",
}
"""Encoders of our own; every other name is a folder or hub name of a transformers vision model."""
PUBLISHED = {"m3d_clip": "vit3d", "medm-pretrain": "medm_clip_ct"}
"""model_type in a published config.json -> the encoder of our own that loads it, for transformers does not know it."""
TOWERS = {"image": "<image>", "volume": "<image3d>"}
"""Kinds of towers, and the placeholder that stands for one of their media in a prompt."""
PARTS = ("llm", *(f"{tower}.{part}" for tower in TOWERS for part in ("encoder", "connector")))
"""Names of the parts of a model, as tuning tables name them."""


def _connector_name(name: str) -> str:
    if name not in CONNECTORS and ":" not in name:
        raise ValueError(f"unknown connector {name!r}; {choices_text(name, CONNECTORS)}")
    return name


def _encoder_name(source: "Weights") -> "Weights":
    name = source.path
    if name is not None and name not in ENCODERS and not {"/", ":"} & set(name) and not Path(name).is_dir():
        raise ValueError(
            f"{name!r} is no folder and no encoder; {choices_text(name, ENCODERS, 'encoders')}. "
            "A folder, a hub name 'organisation/model' or a dotted path 'package.module:Class' works too"
        )
    return source


def template_name(name: str) -> str:
    """Return a template's name or path as it is; raise ValueError for a name that does not ship."""
    known = shipped.names("processing/templates", ".jinja")
    if name not in known and not name.endswith(".jinja"):
        raise ValueError(f"unknown template {name!r}; {choices_text(name, known)}. A path to a .jinja file works too")
    return name


def tower_name(name: str) -> str:
    """Return a tower's name as it is; raise ValueError for an unknown one."""
    if name not in TOWERS:
        raise ValueError(f"unknown tower {name!r}; {choices_text(name, TOWERS)}")
    return name


def part_pattern(pattern: str) -> str:
    """Return a pattern over the parts of a model ("llm", "image.*") as it is; raise ValueError when none can match."""
    if not any(fnmatchcase(part, pattern) for part in PARTS):
        raise ValueError(f"no part of a model is called {pattern!r}; {choices_text(pattern, PARTS, 'parts')}")
    return pattern


def tune_pattern(pattern: str) -> str:
    """Like `part_pattern`, but names below a part ("llm.model.layers.0") may pass: the built model knows them."""
    return pattern if any(pattern.startswith(f"{part}.") for part in PARTS) else part_pattern(pattern)


def matches(parts: Iterable[str], pattern: str) -> bool:
    """Say whether a pattern means one of `parts`, or something below one."""
    return any(fnmatchcase(part, pattern) or pattern.startswith(f"{part}.") for part in parts)


def _spec_fields(spec: dict[str, Any]) -> dict[str, Any]:
    unknown = [
        f"unknown key {key!r}; {choices_text(key, VisionSpec.model_fields, 'known keys')}"
        for key in spec
        if key not in VisionSpec.model_fields
    ]
    if unknown:
        raise ValueError("; ".join(unknown))
    return spec


TemplateName = Annotated[str, AfterValidator(template_name)]


class Weights(Strict):
    """Where a part comes from: `path` (weights) or `architecture` (random weights), one of the two."""

    path: str | None = Field(None, description="local folder, hub name, table name, or dotted path of your own class")
    architecture: dict[str, Any] | None = Field(None, description="a transformers config with its model_type")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give either 'path' (a local folder or hub name) or 'architecture' (random weights)")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError(
                'architecture: required key \'model_type\' is missing ("siglip_vision_model", "qwen2", ...)'
            )
        return self

    @property
    def label(self) -> str:
        """How tables call it: the path, or the model type of the architecture."""
        return self.path or f"{(self.architecture or {})['model_type']} (random weights)"


class TextModel(Weights):
    """A text encoder of transformers."""

    tokenizer: str | None = Field(None, description="folder or hub name of the tokenizer; default: with the weights")


class LLMConfig(TextModel):
    """The language model: any causal LM of transformers."""


def _from_path(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


def _with_short_name(schema: dict[str, Any]) -> None:
    known = schema["properties"]
    known["options"] = {**known["encoder_options"], "title": "Options", "description": "short for `encoder_options`"}


class TowerConfig(Strict):
    """Encoder + connector + placeholder for one kind of media."""

    model_config = ConfigDict(json_schema_extra=_with_short_name)

    encoder: Annotated[
        Weights, BeforeValidator(_from_path, json_schema_input_type=str | Weights), AfterValidator(_encoder_name)
    ]
    encoder_options: dict[str, Any] = Field(
        default_factory=dict,
        description="of the encoder; `options` for short. `layer`, `tokens` and `spec` may stand here too",
    )
    layer: int = Field(
        -1, description="hidden state taken as feature; -1 the last, -2 second to last, before final norm"
    )
    tokens: Literal["all", "patches"] = Field("all", description="keep class tokens inside, or drop them")
    connector: Annotated[str, AfterValidator(_connector_name)] = "mlp"
    connector_options: dict[str, Any] = Field(default_factory=dict)
    placeholder: str | None = Field(None, description="default <image> or <image3d>")
    spec: Annotated[dict[str, Any], AfterValidator(_spec_fields)] | None = Field(
        None, description="fields of the VisionSpec to set otherwise than the checkpoint"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_place_each(cls, data: object) -> object:
        """Take `options` for `encoder_options`, and what an encoder is told by the tower out of them."""
        if not isinstance(data, Mapping):
            return data
        fields = dict(data)
        if "options" in fields and "encoder_options" not in fields:
            fields["encoder_options"] = fields.pop("options")
        options = fields.get("encoder_options")
        if not isinstance(options, Mapping):
            return fields
        moved = {key: options[key] for key in ("layer", "tokens", "spec") if key in options}
        for key, value in moved.items():
            if fields.get(key, value) != value:
                raise ValueError(f"{key!r} is {fields[key]!r}, and {value!r} in encoder_options; leave one out")
        return {**fields, **moved, "encoder_options": {key: options[key] for key in options if key not in moved}}


class ModelConfig(Strict):
    """A vision-language model: one LLM, and a tower for each kind of media."""

    llm: Annotated[LLMConfig, BeforeValidator(_from_path, json_schema_input_type=str | LLMConfig)]
    template: TemplateName | None = Field(None, description="shipped name or .jinja path; default: the LLM's own")
    towers: dict[Annotated[str, AfterValidator(tower_name)], TowerConfig] = Field(default_factory=dict)
    boxes: Annotated[str, AfterValidator(box_format_name)] = Field(
        "0-100", description=f"how boxes are written: {', '.join(BOX_FORMATS)}"
    )

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of this model's parts."""
        return tuple(part for part in PARTS if part == "llm" or part.partition(".")[0] in self.towers)

    @property
    def random_parts(self) -> list[str]:
        """Parts that begin with random weights, in whole or in part; a class of the user's own counts as trained."""
        found = ["llm"] if self.llm.architecture is not None else []
        for name, tower in self.towers.items():
            if any(_is_random(*one) for one in _encoders(tower.encoder, tower.encoder_options)):
                found.append(f"{name}.encoder")
        return found

    @property
    def weights(self) -> list[str]:
        """Files, folders and hub names that weights are read from, without those of the user's own classes."""
        found = [self.llm.path]
        for tower in self.towers.values():
            for encoder, options in _encoders(tower.encoder, tower.encoder_options):
                own = encoder.path is None or encoder.path in ENCODERS or ":" in encoder.path
                found.append(options.get("weights") if own else encoder.path)
            if tower.encoder.path == "dual":
                found.append(TextModel.model_validate(_from_path(tower.encoder_options["text"])).path)
        return list(dict.fromkeys(name for name in found if isinstance(name, str)))


def _encoders(encoder: object, options: Mapping[str, Any]) -> list[tuple[Weights, Mapping[str, Any]]]:
    """Return an encoder and its options; for one that holds others these, but for what the image tower lends."""
    named = encoder if isinstance(encoder, Weights) else Weights.model_validate(_from_path(encoder))
    if named.path == "slices":
        branches = [options]
    elif named.path == "dual":
        branches = [options["volume"], options["slices"]]
    else:
        return [(named, options)]
    inner = [(one["encoder"], one.get("encoder_options") or {}) for one in branches if one["encoder"] != "image"]
    return [found for one in inner for found in _encoders(*one)]


def _is_random(encoder: Weights, options: Mapping[str, Any]) -> bool:
    """Say whether an encoder has no weights to begin with."""
    return encoder.architecture is not None or (encoder.path in ENCODERS and not options.get("weights"))


class TuneRule(Strict):
    """How one part learns; a part without a rule is frozen."""

    mode: Literal["frozen", "full", "lora"]
    lr: float | None = Field(None, gt=0, description="learning rate; required unless frozen")
    rank: int | None = Field(None, ge=1, description="lora only; default 128")
    alpha: float | None = Field(None, gt=0, description="lora only; default twice the rank")
    dropout: float | None = Field(None, ge=0, lt=1, description="lora only; default 0.05")
    targets: list[str] | None = Field(None, description="lora only: names of the layers; default every linear layer")

    @model_validator(mode="before")
    @classmethod
    def _lora_defaults(cls, data: object) -> object:
        if not isinstance(data, Mapping) or data.get("mode") != "lora":
            return data
        filled = {"rank": 128, "dropout": 0.05} | {key: value for key, value in data.items() if value is not None}
        if isinstance(filled["rank"], int):
            filled.setdefault("alpha", 2.0 * filled["rank"])
        return filled

    @model_validator(mode="after")
    def _fits_mode(self) -> Self:
        if self.mode == "frozen" and self.lr is not None:
            raise ValueError("a frozen part takes no 'lr'; remove it, or choose mode full or lora")
        if self.mode != "frozen" and self.lr is None:
            raise ValueError(f"mode {self.mode} needs a learning rate 'lr'")
        given = [key for key in ("rank", "alpha", "dropout", "targets") if getattr(self, key) is not None]
        if self.mode != "lora" and given:
            raise ValueError(f"{', '.join(given)}: only for mode lora, this is mode {self.mode}")
        return self


def shipped_architecture(name: str) -> dict[str, Any] | None:
    """Return what ships about a hub name: {"config": ..., "preprocessor": ... (vision)}; None for an unknown name.

    These are dimensions, no weights: enough to build on the meta device without a network.
    """
    path = shipped.path("model/architectures", name.replace("/", "--"), ".json")
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))
