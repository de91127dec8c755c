"""What the cache of prepared volumes should hold for a recipe: which volumes, and how their encoder wants them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from medmvl.bundle import PROCESSOR
from medmvl.core.schema import SampleError, Volume
from medmvl.data.store import SampleStore
from medmvl.imaging.spec import VisionSpec
from medmvl.model.build import build
from medmvl.processing.processor import Processor
from medmvl.train.assemble import find_bundle, open_stores
from medmvl.train.recipe import Recipe


def spec_of_recipe(recipe: Recipe) -> VisionSpec:
    """Return the spec of a recipe's volume encoder; no weights are read.

    Raises:
        ValueError: the model takes no volumes, or cannot be built.
    """
    if recipe.model is None:
        return spec_of_bundle(find_bundle(str(recipe.init_from)))
    model = build(recipe.model, device="meta").model
    return _volume_spec([tower.encoder.spec for tower in model.towers.values()], "the recipe's model")


def spec_of_bundle(folder: Path) -> VisionSpec:
    """Return the spec of a bundle's volume encoder; no weights are read.

    Args:
        folder: the bundle, or its run.

    Raises:
        ValueError: it is no bundle, or takes no volumes.
    """
    places = [place / PROCESSOR for place in (folder, folder / "bundle")]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise ValueError(f"{folder} is no bundle, nor a run with one; looked for {' and '.join(map(str, places))}")
    return _volume_spec([tower.spec for tower in Processor.load(found).towers.values()], str(folder))


def stores_of_recipe(recipe: Recipe) -> list[SampleStore]:
    """Open the sources whose media a recipe's stages and validations show.

    Raises:
        StoreError: one is not there.
    """
    shown = [data for stage in recipe.stages for data in stage.data if data.media == "keep"]
    shown += [data for stage in recipe.stages if stage.validation for data in stage.validation.data]
    return open_stores([data for data in shown if data.media == "keep"], recipe.run)


def volumes(stores: Iterable[SampleStore]) -> Iterator[str | SampleError]:
    """Yield the address of every volume once, and the error of a sample that cannot be read in its place."""
    seen: set[str] = set()
    for store in stores:
        keys, rows = np.unique(store.media_keys, return_index=True)  # rows of one key show the same media
        for row in np.sort(rows[keys != 0]):
            try:
                paths = [part.path for part in store[int(row)].media if isinstance(part, Volume)]
            except SampleError as error:
                yield error
                continue
            for path in paths:
                if path not in seen:
                    seen.add(path)
                    yield path


def _volume_spec(specs: Iterable[VisionSpec], where: str) -> VisionSpec:
    found = next((spec for spec in specs if spec.is_volume), None)
    if found is None:
        raise ValueError(f"{where} takes no volumes, so there is nothing to prepare")
    return found
