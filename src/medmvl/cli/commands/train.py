"""`medmvl train`: from a recipe to a bundle."""

from typing import Annotated

import typer

from medmvl.cli.screen import new_app

app = new_app()


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped name (medmvl list recipes) or a YAML file.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Tell where the time of each stage goes; same as run.profile=true.")
    ] = False,
) -> None:
    """Train a bundle from a recipe, on every visible GPU, and save it in the run's folder.

    \b
    medmvl train medm_vl_2d run.data_roots='[/data]'
    medmvl train my_recipe.yaml stages.align.epochs=2 run.strategy=fsdp2
    medmvl train my_recipe.yaml --resume
    """
    from medmvl.train.recipe import Recipe

    settings = [*(overrides or []), *(["run.profile=true"] if profile else [])]
    Recipe.load(recipe, settings)  # a mistake is told before torch is paid for
    from medmvl.train.run import train

    train(recipe, overrides=settings, resume=resume)
