"""Prepared volumes on disk: read and fitted once, then memory-mapped; never served for a file that has changed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.imaging.content import ContentStore
from medmvl.imaging.fit import Fitted, fit_volume
from medmvl.imaging.read import read_volume
from medmvl.imaging.spec import VisionSpec
from medmvl.imaging.volume import Volume

FITTING = 2
"""Part of every key. Raise it when reading or fitting gives other values than before for the same file and spec, or
says more about them."""

_AFTERWARDS = {"mean", "std", "rescale", "channels"}  # fields of a spec that act on fitted values


class PreparedStore(ContentStore):
    """Fitted volumes by content of their files and by spec: by the fields of it that `fit_volume` follows.

    Warnings that reading or fitting gives are given once, when an entry is made.
    """

    what = "prepared volumes"
    readme = """\
Volumes as medmvl prepared them for training: a cache, made from the volumes that its data name.
It is derived from patient images: guard it as you guard those. It can be deleted at any time; it is filled again.
"""
    otherwise = (
        "this process goes on without storing, and prepares what is not there each time anew. Name another folder, or "
        "none (in a recipe run.prepared=null)"
    )

    def fitted(self, path: str | Path, spec: VisionSpec, read: Callable[[str | Path], Volume] = read_volume) -> Fitted:
        """Return `fit_volume(read(path), spec)`, from the cache where it is there; values are read-only.

        Args:
            path: address of the volume, fragment included. A file that is gone is an error even where it was stored.
            spec: of a volume encoder.
            read: what reads it; its result must follow from the address and the bytes.

        Raises:
            ImageError: as `read`; or the file changed while it was read.
            DiskFullError: `strict`, and the entry cannot be written.
        """
        return self._fitted(path, spec, read)[0]

    def prepare(self, path: str | Path, spec: VisionSpec) -> int:
        """Make sure that a volume is in the cache; return the bytes that were stored, 0 where it was there.

        Raises:
            ImageError, DiskFullError: as `fitted`.
        """
        return self._fitted(path, spec, read_volume)[1]

    def _fitted(self, path: str | Path, spec: VisionSpec, read: Callable[[str | Path], Volume]) -> tuple[Fitted, int]:
        entry = self.entry(path, _spec_key(spec), FITTING)
        if entry is None:
            return fit_volume(read(path), spec), 0  # the reader says what is wrong with it
        found = self.get(entry.key)
        if found is not None:
            return _restored(*found), 0
        fitted = self.steady(entry, lambda: fit_volume(read(path), spec))
        fitted.values.flags.writeable = False
        stored = self.put(entry.key, fitted.values, _about(fitted))
        return fitted, fitted.values.nbytes * stored


def entry_bytes(spec: VisionSpec) -> int:
    """Return the bytes that a volume takes in the cache."""
    return math.prod(spec.size) * (2 if spec.levels == "int16" else 1)


@lru_cache(maxsize=64)
def _spec_key(spec: VisionSpec) -> str:
    return json.dumps(spec.model_dump(mode="json", exclude=_AFTERWARDS), sort_keys=True)


def _about(fitted: Fitted) -> dict[str, Any]:
    told = {"file_size": fitted.file_size, "spacing": fitted.spacing, "oriented": fitted.oriented}
    return {"to_spec": fitted.to_spec.tolist(), **told}


def _restored(values: np.ndarray, about: Mapping[str, Any]) -> Fitted:
    spacing = about["spacing"]
    return Fitted(
        values,
        np.array(about["to_spec"]),
        tuple(about["file_size"]),
        None if spacing is None else tuple(spacing),
        about["oriented"],
    )
