"""How an encoder is built from a tower's settings."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmvl.core.lookup import resolve
from medmvl.core.options import check_options
from medmvl.model.config import ENCODERS, PUBLISHED, TowerConfig, shipped_architecture
from medmvl.model.encoders import hf
from medmvl.model.encoders.base import Context, Encoder, EncoderError, Lent
from medmvl.model.source import SourceError, folder

GIVEN = ("config", "model", "context")
"""Parameters of encoders that are no options."""
_OF_THE_TOWER = ("layer", "tokens", "spec")


def build_encoder(
    config: TowerConfig, weights: bool = True, where: str = "encoder", image: Lent | None = None
) -> Encoder:
    """Build the encoder of a tower on the current default device.

    Args:
        config: its `encoder`, `encoder_options`, `layer`, `tokens` and `spec` are read.
        weights: False builds random weights, and takes shipped architectures for hub names (the meta device).
        where: for errors.
        image: the image tower's encoder, for one that shares it.

    Raises:
        LookupNameError: a dotted path that leads nowhere.
        EncoderError, SourceError: what is missing or does not fit.
    """
    options = {"layer": config.layer, "tokens": config.tokens, "spec": config.spec, **config.encoder_options}
    if config.encoder.architecture is not None:
        fields = dict(config.encoder.architecture)
        preprocessor = fields.pop("preprocessor", None)
        _check_options(hf.HFEncoder, options, where)
        return hf.load(fields, preprocessor=preprocessor, where=where, **options)
    name = str(config.encoder.path)
    if name in ENCODERS or ":" in name:
        return _own(name, options, Context(weights, image), where)
    shipped = None if weights or Path(name).is_dir() else shipped_architecture(name)
    found = None if shipped is not None else folder(name, where)
    config_json = shipped["config"] if found is None else _read_config(found, where)
    if config_json.get("model_type") in PUBLISHED:
        row = PUBLISHED[config_json["model_type"]]
        try:
            known = resolve(ENCODERS, row, where).options_of(config_json)
        except EncoderError as error:
            raise EncoderError(f"{where}: {name}: {error}") from error
        return _own(row, {"weights": name, **known, **options}, Context(weights, image), where)
    _check_options(hf.HFEncoder, options, where)
    if found is None:
        return hf.load(config_json, preprocessor=shipped["preprocessor"], where=where, **options)
    return hf.load(found, weights=weights, where=where, **options)


def _read_config(source: Path, where: str) -> dict[str, Any]:
    """Return a folder's config.json; {} without one, of which transformers' own error tells more."""
    try:
        content = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EncoderError(f"{where}: {source / 'config.json'} cannot be read ({error}); copy it again") from error
    return content if isinstance(content, dict) else {}


def _own(name: str, options: dict[str, Any], context: Context, where: str) -> Encoder:
    cls = resolve(ENCODERS, name, where)
    _check_options(cls, options, where)
    if "context" in inspect.signature(cls).parameters:
        options["context"] = context
    try:
        encoder = cls(**options)
    except (EncoderError, TypeError) as error:
        raise EncoderError(f"{where}: {error}") from error
    except SourceError as error:
        raise SourceError(f"{where}: {error}") from error
    missing = [
        key
        for key in ("spec", "grid", "width", "num_tokens", "reachable", "self_contained")
        if not hasattr(encoder, key)
    ]
    if missing:
        raise EncoderError(
            f"{where}: {name!r} is no encoder, it lacks {', '.join(missing)}; "
            "derive it from medmvl.model.encoders.base.Encoder"
        )
    return encoder


def _check_options(cls: type, options: Mapping[str, Any], where: str) -> None:
    """Refuse options that the encoder does not take, lacks or cannot read, all at once."""
    try:
        check_options(cls, options, given=GIVEN, known_good=_OF_THE_TOWER)
    except ValueError as error:
        raise EncoderError(f"{where}: {error}") from error
