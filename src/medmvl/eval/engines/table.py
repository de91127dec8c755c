"""The table of engines, and the one way to open what is to be evaluated."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from medmvl.core.lookup import LookupNameError, choices_text, resolve
from medmvl.eval.engines.bundle import Answering, BundleEngine
from medmvl.eval.engines.engine import Engine, Opening

ENGINES = {
    "bundle": "medmvl.eval.engines.bundle:open_bundle",
    "transformers": "medmvl.eval.engines.transformers:open_transformers",
    "openai": "medmvl.eval.engines.openai:open_openai",
    "predictions": "medmvl.eval.engines.predictions:open_predictions",
}
"""`name -> "module:attribute"` of a function (address, opening, **options) -> `Engine`."""

Target = Engine | Answering
"""An engine as it is, or a model that answers samples as a bundle does."""

_ADDRESSES = {
    "bundle": "bundle:FOLDER, or the folder alone",
    "transformers": "transformers:FOLDER",
    "openai": "openai:URL#MODEL",
    "predictions": "predictions:FILE",
}
_NAMED = re.compile(r"((?:\w+\.)+\w+:\w+|[\w-]{2,}):(.+)", re.DOTALL)  # one letter alone is a drive


def open_engine(
    target: Target | str | Path,
    *,
    device: str = "cpu",
    allow_code: Sequence[str] = (),
    allow_remote: bool = False,
    **options: Any,
) -> Engine:
    """Return what answers for a target.

    Args:
        target: "ENGINE:ADDRESS" with an engine of `ENGINES` or a dotted path of the user's own
            ("package.module:function:ADDRESS"); the folder of a bundle, which is what any existing path is taken for;
            a bundle, or a model that answers as one; or an engine, which is returned as it is.
        device: where models go.
        allow_code: packages whose code a bundle may run (see `medmvl.load`).
        allow_remote: questions and pictures may be sent to another machine.
        options: settings of that engine, such as `boxes`; see the function in `ENGINES`.

    Raises:
        LookupNameError: no such engine; says the nearest and all.
        ValueError: an option that the engine does not know, or a target that answers nothing.
        BundleError, EngineError: it cannot be opened.
    """
    if not isinstance(target, str | Path):
        return _as_engine(target, options)
    name, address = _split(target)
    opened = cast(Callable[..., Engine], resolve(ENGINES, name, "engine"))
    _check_options(f"engine {name!r}", opened, options)
    return opened(address, Opening(device, allow_code, allow_remote), **options)


def _as_engine(target: Any, options: Mapping[str, Any]) -> Engine:
    if options:
        raise ValueError(
            f"{', '.join(options)}: settings of an engine that is opened by its address; {type(target).__name__} is an "
            "object with settings of its own"
        )
    # Whether something is an engine is asked last: it would look at the hash, which takes a bundle a while.
    if callable(getattr(target, "answer", None)) and isinstance(target, Engine):
        return target
    if isinstance(target, Answering):
        return BundleEngine(target)
    raise ValueError(
        f"{type(target).__name__} cannot be evaluated: it is no Engine (name, hash, remote, asks, answer, likelihoods, "
        "boxes), and has no generate(samples, max_new_tokens, temperature) and processor.boxes_from_text as bundles do"
    )


def _split(target: str | Path) -> tuple[str, str]:
    """Return the engine's name and the address it opens."""
    text = str(target)
    found = None if Path(text).exists() else _NAMED.fullmatch(text)
    if found is None:
        return "bundle", text
    name, address = found.groups()
    if name not in ENGINES and ":" not in name:
        forms = "; ".join(_ADDRESSES.values())
        raise LookupNameError(
            f"{text!r} does not exist, and no engine is called {name!r}; {choices_text(name, ENGINES, 'engines')}. "
            f"Targets are {forms}; or package.module:function:ADDRESS of your own"
        )
    return name, address


def _check_options(where: str, opened: Callable[..., Engine], options: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(opened).parameters.values())[2:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for name in options:
        if name not in known:
            hint = choices_text(name, known, "options") if known else "it has none"
            if name == "boxes":
                hint += "; a bundle knows how its own boxes are written"
            raise ValueError(f"{where} has no option {name!r}; {hint}")
