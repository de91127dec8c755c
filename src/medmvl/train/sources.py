"""Whether a recipe's data is at hand: found, a known data set to fetch, or a name that means nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmvl.core.lookup import choices_text, nearest
from medmvl.data.adapters.table import ADAPTERS, adapter
from medmvl.data.store import SampleStore, StoreError, find_source
from medmvl.train.recipe import Data

BUILT = ("brain_atlas", "brain_atlas_3d")
"""Benchmarks that are made here."""
OTHERS = {
    "llava_instruct_mix665k": (
        "LLaVA-Instruct mix665k: huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
        "medmvl data convert llava llava_v1_5_mix665k.json",
    )
}
"""Data sets without an adapter of their own that shipped recipes name: where they come from, how to convert them."""


@dataclass(frozen=True)
class Status:
    """What is known of one source.

    Attributes:
        data: as the recipe names it.
        store: the samples; None when they are not at hand.
        note: the folder, or what is missing and what to do.
        fatal: True when nothing is known by this name, or what is there cannot be read.
    """

    data: Data
    store: SampleStore | None
    note: str
    fatal: bool = False


def status(data: Data, roots: Sequence[str | Path]) -> Status:
    """Look for one source in `roots`."""
    name = data.source.partition("/")[0]
    try:
        found = find_source(data.source, roots)
    except StoreError as error:
        return _missing(data, name, str(error), roots)
    tasks = list(data.tasks) if data.tasks is not None else found.tasks
    try:
        store = SampleStore(found.folder, data.split, tasks, roots=roots)
    except StoreError as error:
        return Status(data, None, str(error), fatal=True)
    if not len(store):
        return Status(data, None, f"{store.path} has no sample of this kind", fatal=True)
    return Status(data, store, str(store.path))


def _missing(data: Data, name: str, error: str, roots: Sequence[str | Path]) -> Status:
    if Path(data.source).exists():
        return Status(data, None, error, fatal=True)
    where = _origin(name, roots)
    if where is None:
        near = nearest(name, [*BUILT, *OTHERS, *ADAPTERS])
        hint = f" Of known data sets, {near!r} is nearest ({_origin(near, roots)})." if near else ""
        return Status(data, None, f"{error}{hint}", fatal=True)
    if name in ADAPTERS:
        known = [f"{name}/{task}" for task in adapter(name).tasks]
        named = [data.source] if "/" in data.source else list(data.tasks or ())
        wrong = [task for task in named if task not in known]
        if wrong:
            return Status(data, None, f"has no task {wrong[0]!r}; {choices_text(wrong[0], known, 'tasks')}", fatal=True)
    return Status(data, None, f"not here; {where}")


def _origin(name: str, roots: Sequence[str | Path]) -> str | None:
    """Return where a data set comes from and which command puts it where it is looked for; None for an unknown one."""
    out = Path(next(iter(roots), "data")) / name
    if name in BUILT:
        return f"built here: medmvl data build {name} {out}"
    if name in OTHERS:
        return f"{OTHERS[name][0]}; then {OTHERS[name][1]} {out}"
    if name in ADAPTERS:
        return f"{adapter(name).title}: {adapter(name).access}; then medmvl data convert {name} FOLDER {out}"
    return None
