"""What is known of samples while they are written: counts, kept in a few bytes each, and ids that occur twice."""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from medmvl.core.schema import Sample


class Tally:
    """Counts the samples of one split by task, medium and patient; keeps 20 bytes of each.

    Attributes:
        names: task -> its code, in order of appearance.
        tasks: code of every sample.
        media: hash of every sample's media; 0 for text alone.
    """

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.tasks = array("i")
        self.media = array("Q")
        self._patients = array("q")

    def __len__(self) -> int:
        return len(self.tasks)

    def add(self, sample: Sample, media: int) -> None:
        """Count one sample, whose media have this hash."""
        self.tasks.append(self.names.setdefault(sample.task, len(self.names)))
        self.media.append(media)
        self._patients.append(hash(sample.patient))

    def summary(self) -> dict[str, Any]:
        """Return the counts as a manifest shows them."""
        media = np.unique(np.frombuffer(self.media, np.uint64))
        counts = np.bincount(np.frombuffer(self.tasks, np.int32))
        return {
            "samples": len(self),
            "patients": len(np.unique(np.frombuffer(self._patients, np.int64))),
            "media": int((media != 0).sum()),
            "tasks": {name: int(counts[code]) for name, code in sorted(self.names.items())},
        }


class Ids:
    """Ids seen so far: 8 bytes each, in sorted runs of which the long ones are merged least often.

    Hashes of 64 bits take the place of the ids. Among twenty million, two different ids share one with a probability
    of 1 in 100,000; the later one would be called a repetition.
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, ids: Sequence[str]) -> list[bool]:
        """Take some ids in; say of each whether it is new."""
        hashes = np.array([hash(one) for one in ids], np.int64)
        new = np.zeros(len(hashes), bool)
        new[np.unique(hashes, return_index=True)[1]] = True
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            new &= run[places] != hashes
        fresh = np.sort(hashes[new])
        while self._runs and len(self._runs[-1]) <= len(fresh):
            fresh = np.sort(np.concatenate([self._runs.pop(), fresh]), kind="stable")
        if len(fresh):
            self._runs.append(fresh)
        return new.tolist()
