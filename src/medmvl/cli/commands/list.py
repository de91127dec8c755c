"""`medmvl list`: what ships, by name."""

import json
import re
from collections.abc import Callable, Sequence
from textwrap import fill, wrap
from typing import Annotated, Any

import typer

from medmvl.cli.screen import new_app
from medmvl.core import shipped
from medmvl.core.lookup import choices_text

app = new_app()
Rows = list[tuple[str, str]]


@app.command()
def list_names(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="One kind, or `schema`; default: all.")] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="An encoder or connector: its options; a group of tasks, a task or a suite: what it is.",
        ),
    ] = None,
) -> None:
    """Name everything that a recipe or the command line can name.

    \b
    medmvl list
    medmvl list recipes
    medmvl list connectors attention               (its options, with their defaults)
    medmvl list encoders google/siglip-base-patch16-256-multilingual
    medmvl list tasks slake                        (its tasks; medmvl list tasks slake/vqa: one of them)
    medmvl list suites medm_vl_2d                  (the columns of a published table)
    medmvl list schema > recipe.schema.json        (for editors: completion and checks while you type)
    """
    if kind == "schema":
        from medmvl.train.recipe import Recipe

        typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; {choices_text(kind, [*KINDS, 'schema'])}")
    if name is not None:
        if kind in CLASSES:
            _print_options(name, *CLASSES[kind](name))
        elif kind in PARTS:
            _print_rows(name, PARTS[kind](name))
        else:
            known = choices_text(str(kind), [*CLASSES, *PARTS], "those that do")
            raise ValueError(f"{kind} have no options to list; {known}")
        return
    for name in [kind] if kind else KINDS:
        _print_rows(name, KINDS[name]())


def _print_rows(name: str, rows: Rows) -> None:
    width = max((len(row) for row, _ in rows), default=0)
    typer.echo("\n".join([f"{name}:", *(f"  {row:{width}}  {text}".rstrip() for row, text in rows), ""]))


def _print_options(name: str, cls: Callable[..., Any], given: Sequence[str]) -> None:
    """Print what a class is and every option, by its own signature and docstring."""
    from medmvl.core.options import REQUIRED, options_of, summary, type_text

    options = options_of(cls, given)
    typer.echo(f"{name}: {summary(cls)}" + ("" if options else "\n\n  no options"))
    for one in options:
        default = "required" if one.default is REQUIRED else json.dumps(one.default)
        typer.echo(f"\n  {one.name}: {type_text(one.annotation)}; {default}")
        typer.echo(fill(one.about, 100, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False))


def _connector(name: str) -> tuple[Any, Sequence[str]]:
    from medmvl.core.lookup import resolve
    from medmvl.model.connectors import CONNECTORS, GIVEN

    return resolve(CONNECTORS, name, "connector"), GIVEN


def _encoder(name: str) -> tuple[Any, Sequence[str]]:
    """Return the class of an encoder; a folder or hub name that no class of our own loads is a transformers model."""
    from medmvl.core.lookup import resolve
    from medmvl.model.config import ENCODERS, PUBLISHED, shipped_architecture
    from medmvl.model.encoders.hf import HFEncoder
    from medmvl.model.encoders.table import GIVEN

    shipped = shipped_architecture(name)
    row = PUBLISHED.get(shipped["config"]["model_type"], name) if shipped else name
    if "/" in row and ":" not in row:
        return HFEncoder, (*GIVEN, "spec")  # from the checkpoint; the tower's `spec` changes it
    return resolve(ENCODERS, row, "encoder"), GIVEN


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


_TASKS_NAMED = 10  # of a group; the names of more would be a flood


def _tasks() -> Rows:
    """Return the groups of tasks, with the names of their tasks where these are few."""
    from itertools import groupby

    rows = []
    for group, names in groupby(shipped.names("eval/tasks", ".yaml"), lambda name: name.rpartition("/")[0]):
        own = [name.rpartition("/")[2] for name in names]
        count = f"{len(own)} task{'s' if len(own) > 1 else ''}"
        rows.append((group, f"{count}: {', '.join(own)}" if len(own) <= _TASKS_NAMED else count))
    return rows


def _task(name: str) -> Rows:
    """Return the tasks of a group with their titles, or what one task is."""
    from medmvl.eval.task import load_tasks

    tasks = load_tasks(name)
    if [task.name for task in tasks] != [name]:
        return [(task.name, task.title) for task in tasks]
    (task,) = tasks
    told: Rows = []
    for key, value in task.model_dump(exclude={"name"}, exclude_defaults=True).items():
        if isinstance(value, list):
            told += [(key if place == 0 else "", str(one)) for place, one in enumerate(value)]
        else:
            told.append((key, str(value) if not isinstance(value, dict) else json.dumps(value)))
    return told


def _suites() -> Rows:
    from medmvl.eval.suite import load_suite, suite_names

    return [(name, load_suite(name).title) for name in suite_names()]


def _suite(name: str) -> Rows:
    """Return the columns of a suite, and whose published numbers ship."""
    from medmvl.eval.suite import baselines, load_suite

    suite = load_suite(name)
    published = baselines(suite)
    systems = "none ship" if published is None else ", ".join(reported.system for reported in published.systems)
    columns = [(column.label, f"{column.metric} of {column.task}") for column in suite.columns]
    source = wrap(suite.source, 100, break_on_hyphens=False)
    told = [("source" if place == 0 else "", line) for place, line in enumerate(source)]
    return [("title", suite.title), *told, *columns, ("published", systems)]


def _datasets() -> Rows:
    from medmvl.data.adapters.table import ADAPTERS, adapter

    return [(name, adapter(name).title) for name in ADAPTERS]


KINDS: dict[str, Callable[[], Rows]] = {
    "recipes": _recipes,
    "templates": _templates,
    "connectors": _connectors,
    "encoders": _encoders,
    "tasks": _tasks,
    "suites": _suites,
    "datasets": _datasets,
}
CLASSES: dict[str, Callable[[str], tuple[Any, Sequence[str]]]] = {"connectors": _connector, "encoders": _encoder}
"""Kinds whose names stand for classes with options: name -> the class, and its parameters that are no options."""
PARTS: dict[str, Callable[[str], Rows]] = {"tasks": _task, "suites": _suite}
"""Kinds whose names stand for something made of parts: name -> its parts."""
