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


@app.command(no_args_is_help=False)
def list_names(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="recipes, templates, ... or schema; default all.")
    ] = None,
) -> None:
    """Name everything that can be named in a recipe or on the command line.

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
        dict[str, Callable[[], Rows]] = {
            "recipes": _recipes,
            "templates": _templates,
            "connectors": _connectors,
            "encoders": _encoders,
            "tasks": _tasks,
        }
