"""Data sets in the forms of Hugging Face: a folder written by `save_to_disk`, or files laid out as on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medmvl.core.lookup import choices_text
from medmvl.data.adapters.annotations import SPLIT_NAMES, split_of
from medmvl.data.adapters.base import LayoutError
from medmvl.data.adapters.columns import Columns
from medmvl.data.rows import BadRow, Row, TableError, arrow_rows, hub_features, json_rows, parquet_rows

_KINDS = (".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv")
_ABOUT = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
_SHARD = re.compile(r"(?P<split>.+?)(?:[-_]\d+(?:-of-\d+)?)?")


class HuggingFace(Columns):
    """The columns of such a data set, under the options of `table`; classes become their names.

    The files are read as they are: no script of the folder is run, no package of Hugging Face needed, nothing fetched.
    """

    name = "hf"
    title = "A data set in a form of Hugging Face (save_to_disk, or Parquet, Arrow and JSONL as on the hub)"
    access = "yours; --option image=COLUMN --option question=COLUMN --option answer=COLUMN says what its columns hold"
    layout = """
train/data-00000-of-00001.arrow     with state.json beside it and dataset_dict.json above: written by save_to_disk
data/train-00000-of-00002.parquet   or as on the hub: train, validation and test in names of files or folders
"""
    one_file = False

    def files(self) -> list[tuple[Path, str]]:
        saved = any((self.root / name).is_file() for name in ("dataset_dict.json", "state.json"))
        files = self._saved() if saved else self._laid_out()
        known = [(path, self.split_of_all or split_of(named)) for path, named in files]
        strange = sorted({named for (_, split), (_, named) in zip(known, files, strict=True) if split is None})
        if strange:
            raise LayoutError(
                f"{self.root}: cannot tell the split of {', '.join(strange)}; {choices_text(strange[0], SPLIT_NAMES)}. "
                "Convert such files from a folder of their own, with --option split=test"
            )
        return [(self.find(str(path.relative_to(self.root))), str(split)) for path, split in known]

    def rows(self, file: Path) -> Iterator[Row | BadRow]:
        if ".json" in file.name:
            return json_rows(file)
        if file.suffix not in (".parquet", ".arrow"):
            return super().rows(file)
        classes = {name: names for name, kind in hub_features(file).items() if (names := _class_names(kind))}
        rows = parquet_rows(file) if file.suffix == ".parquet" else arrow_rows(file)
        return (_with_names(row, classes) for row in rows) if classes else rows

    def _saved(self) -> list[tuple[Path, str]]:
        """Return the files that `save_to_disk` wrote, each with the name of its split."""
        if (self.root / "state.json").is_file():
            state = _read(self.root / "state.json")
            return self._parts(self.root, state, str(state.get("_split") or "train"))
        splits = [str(name) for name in _read(self.root / "dataset_dict.json").get("splits", [])]
        states = {split: self.find(f"{split}/state.json") for split in splits}
        return [part for split, path in states.items() for part in self._parts(path.parent, _read(path), split)]

    def _parts(self, folder: Path, state: Mapping[str, Any], split: str) -> list[tuple[Path, str]]:
        names = [Path(str(part.get("filename"))).name for part in state.get("_data_files", [])]
        return [(self.find(str((folder / name).relative_to(self.root))), split) for name in names]

    def _laid_out(self) -> list[tuple[Path, str]]:
        """Return the files of a folder laid out as on the hub, each with the name of its split.

        Raises:
            LayoutError: there are none, or they belong to several data sets.
        """
        paths = [path for path in sorted(self.root.rglob("*")) if _is_table(path, self.root)]
        if not paths:
            self.find("dataset_dict.json", "state.json", "data")
            raise LayoutError(f"{self.root}: tables are missing, {', '.join(_KINDS)}. {self._expected()}")
        named = [_split_name(path) for path in paths]
        homes = sorted({str(home.relative_to(self.root)) for home, _ in named})
        if len(homes) > 1:
            raise LayoutError(f"{self.root}: holds several data sets, in {', '.join(homes)}; name one of the folders")
        return [(path, split) for path, (_, split) in zip(paths, named, strict=True)]


def _is_table(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.name.lower().endswith(_KINDS) and path.name not in _ABOUT and not hidden and path.is_file()


def _split_name(path: Path) -> tuple[Path, str]:
    """Return the folder of the data set that a file belongs to, and what its name, or else its folder, says."""
    shard = _SHARD.fullmatch(path.name.partition(".")[0])
    name = shard["split"] if shard else path.name
    if split_of(name) is None and split_of(path.parent.name) is not None:
        return path.parent.parent, path.parent.name
    return path.parent, name


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise TableError(f"{path}: is no object but a {type(found).__name__}")
    return found


def _class_names(kind: Any) -> list[str]:
    """Return the names of a column's classes, alone or in lists; [] for what is no class."""
    if isinstance(kind, list):
        return _class_names(kind[0]) if kind else []
    if not isinstance(kind, Mapping):
        return []
    return list(kind.get("names") or []) if kind.get("_type") == "ClassLabel" else _class_names(kind.get("feature"))


def _with_names(row: Row | BadRow, classes: Mapping[str, list[str]]) -> Row | BadRow:
    if isinstance(row, BadRow):
        return row
    try:
        return Row(row.place, {**row.data, **{name: _named(row.data[name], names) for name, names in classes.items()}})
    except IndexError:
        return BadRow(row.place, "has a class that has no name")


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return None if value is None or value < 0 else names[value]  # -1 is the hub's "not told"
