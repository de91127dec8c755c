"""`medmvl list`: what ships, by name."""

import json
import re
from collections.abc import Callable
from typing import Annotated

import typer

from medmvl.cli.screen import new_app
from medmvl.core import shipped
from medmvl.core.lookup import choices_text

app = new_app()
Rows = list[tuple[str, str]]


@app.command()
def list_names(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="One kind, or `schema`; default: all.")] = None,
) -> None:
    """Name everything that a recipe or the command line can name.

    \b
    medmvl list
    medmvl list recipes
    medmvl list schema > recipe.schema.json        (for editors: completion and checks while you type)
    """
    if kind == "schema":
        from medmvl.train.recipe import Recipe

        typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; {choices_text(kind, [*KINDS, 'schema'])}")
    for name in [kind] if kind else KINDS:
        rows = KINDS[name]()
        width = max((len(row) for row, _ in rows), default=0)
        typer.echo("\n".join([f"{name}:", *(f"  {row:{width}}  {text}".rstrip() for row, text in rows), ""]))


def _recipes() -> Rows:
    return [(name, _first_comment(name)) for name in shipped.names("recipes", ".yaml")]


def _first_comment(recipe: str) -> str:
    path = shipped.path("recipes", recipe, ".yaml")
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") if path else ""


def _templates() -> Rows:
    return [(name, _about(name)) for name in shipped.names("processing/templates", ".jinja")]


def _about(template: str) -> str:
    path = shipped.path("processing/templates", template, ".jinja")
    comments = re.findall(r"\{#-(.*?)-#\}", path.read_text(encoding="utf-8"), re.DOTALL) if path else []
    return next((" ".join(text.split()) for text in comments if "end mark:" not in text), "")


def _connectors() -> Rows:
    from medmvl.model.config import CONNECTORS

    return sorted(CONNECTORS.items())


def _encoders() -> Rows:
    from medmvl.model.config import ENCODERS, PUBLISHED, shipped_architecture

    names = [name.replace("--", "/", 1) for name in shipped.names("model/architectures", ".json")]
    known = {name: shipped_architecture(name) or {} for name in names}
    return [
        *sorted(ENCODERS.items()),
        *((name, "dimensions ship") for name, found in known.items() if "preprocessor" in found),
        *(
            (name, f"dimensions ship; is {PUBLISHED[family]!r}")
            for name, found in known.items()
            if (family := found["config"]["model_type"]) in PUBLISHED
        ),
        ("FOLDER or ORGANISATION/MODEL", "any vision model of transformers: CLIP, SigLIP, DINO, ViT, ConvNeXt, ..."),
    ]


def _tasks() -> Rows:
    from medmvl.core.config import read_yaml

    known = {name: shipped.path("eval/tasks", name, ".yaml") for name in shipped.names("eval/tasks", ".yaml")}
    return [(name, read_yaml(path)[0].get("title", "")) for name, path in known.items() if path]


def _datasets() -> Rows:
    from medmvl.data.adapters.table import ADAPTERS, adapter

    return [(name, adapter(name).title) for name in ADAPTERS]


KINDS: dict[str, Callable[[], Rows]] = {
    "recipes": _recipes,
    "templates": _templates,
    "connectors": _connectors,
    "encoders": _encoders,
    "tasks": _tasks,
    "datasets": _datasets,
}
