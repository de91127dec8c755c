"""Tiny roots of data sets in their official layout: what each adapter's fixture is, and where it is found.

Every row of `medmvl.data.adapters.table.ADAPTERS` has a file `tests/data/adapters/roots_NAME.py` with one function,

    def build(folder: Path) -> Root: ...

that writes the official tree below `folder` (real file and column names, made-up content) and says what comes out of
it. tests/contracts/test_adapters.py runs over all of them; two rows with one class may share a file.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from medmvl.data.adapters.table import ADAPTERS

BUILDERS = Path(__file__).parent / "data" / "adapters"


@dataclass(frozen=True)
class Root:
    """A small data set on disk, and what its adapter makes of it.

    Every fixture plants at least one row with a missing field, and, where annotations name files, one path that leaves
    the root ("../../outside.png"); both are refused and lose nothing else. All other files that annotations name exist.

    Attributes:
        path: what the adapter is given: the folder, or the file where it takes one.
        options: the adapter's settings.
        counts: (split, "name/task") -> number of samples.
        refused: split -> number of rows that are refused when all tasks are asked for.
        names_paths: annotations name files, so one that leaves the root can be planted.
        spotless: why no row of this data set can be wrong, for the few whose files have no rows; else "".
    """

    path: Path
    counts: Mapping[tuple[str, str], int]
    refused: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    names_paths: bool = True
    spotless: str = ""


def build(name: str, folder: Path) -> Root:
    """Return the root of one row of the table, written below `folder`."""
    return builder(name).build(folder)


def builder(name: str) -> ModuleType:
    """Return the module `roots_NAME` of one row of the table.

    Raises:
        FileNotFoundError: nobody wrote a fixture for it.
    """
    twins = [name, *(other for other in ADAPTERS if other != name and ADAPTERS[other] == ADAPTERS[name])]
    files = [BUILDERS / f"roots_{twin}.py" for twin in twins]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"the adapter {name!r} has no fixture: write {files[0]} with build(folder) -> Root")
    spec = importlib.util.spec_from_file_location(found.stem, found)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
