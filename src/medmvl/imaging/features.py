"""What frozen encoders made of pictures and volumes, on disk: computed once, then memory-mapped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from medmvl.imaging.content import ContentStore, Entry, digest
from medmvl.imaging.picture import ImageError

READING = 1
"""Part of every key. Raise it, as `cache.FITTING`, when reading or preparing gives an encoder other pixels than before
for the same file and spec."""

_LOOKS = 3


class FeatureStore(ContentStore):
    """Features by content of their medium and by what made them.

    Arrays are read without being looked at before, which is what makes them fast: whether one is damaged is noticed
    when it is used, and noted, so that it counts as missing from then on.
    """

    what = "features"
    readme = """\
Features that frozen encoders made of the pictures and volumes of medmvl's training data: a cache.
It is derived from patient images: guard it as you guard those. It can be deleted when no run uses it; the next run that
wants features fills it again.
"""
    otherwise = "this run goes on without. Name another folder, or none (in a recipe run.features=null)"

    def holds(self, key: str) -> bool:
        """Whether an array is there, and not known to be damaged; it is not looked at."""
        return self._shards.count(key) > int(self._shards.note(_damaged(key)) or 0)

    def get(self, key: str) -> tuple[np.ndarray, Mapping[str, Any]] | None:
        known = self._shards.count(key)
        found = super().get(key)
        if found is None and known:
            self._write(lambda: self._shards.put_note(_damaged(key), str(known)))
        return found

    def seconds_to_read(self, key: str) -> float:
        """Return how long it takes to get an array from the disk; the best of a few tries."""
        found = []
        for _ in range(_LOOKS):
            self._shards.let_go(key)
            start = time.perf_counter()
            array = self._shards.get(key)
            if array is not None:
                np.array(array[0])
            found.append(time.perf_counter() - start)
        return min(found)


class Frame(NamedTuple):
    """How the pixels that an encoder saw lie in their file; see `encoded.View`."""

    affine: np.ndarray
    file_size: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Kept:
    """Features that stand in for the media of one tower.

    Attributes:
        store: where they are.
        made: what made them: the encoder, its weights, and how it is fed.
        blank: [tokens, width] of a blank picture or volume.
    """

    store: FeatureStore
    made: str
    blank: np.ndarray

    def entry(self, path: str, shown: str) -> Entry | None:
        """Return where the features of a file belong, None where it cannot be reached; `shown` tells how it is shown.

        Raises:
            ImageError: the address makes no sense.
        """
        return self.store.entry(path, f"{self.made} {shown}", READING)

    def load(self, path: str, shown: str, look: Callable[[], object]) -> tuple[np.ndarray, Frame]:
        """Return the features [tokens, width] of a file, and its frame.

        Args:
            path: address of the picture or volume.
            shown: how it is shown.
            look: reads the file where there are no features, to tell what is wrong with it.

        Raises:
            ImageError: there are none; or as `look`.
        """
        entry = self.entry(path, shown)
        found = None if entry is None else self.store.get(entry.key)
        if found is None:
            look()
            raise ImageError(
                path,
                f"its features are not in {self.store.folder}: the file changed after the run had begun, or that "
                "folder did. Stop the run and resume it: features are completed when it starts",
            )
        array, about = found
        return array, Frame(np.array(about["affine"]), tuple(about["file_size"]))

    def put(self, key: str, array: np.ndarray, frame: Frame) -> bool:
        """Store the features of a file under the key of its `entry`; return whether that was done."""
        return self.store.put(key, array, {"affine": frame.affine.tolist(), "file_size": list(frame.file_size)})


def blank_key(made: str) -> str:
    """Return the key of a blank picture's features."""
    return digest(f"blank {made}")


def _damaged(key: str) -> str:
    return f"damaged:{key}"
