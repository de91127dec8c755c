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

    def add(self, sample: Sample, paths: Sequence[str], media: int) -> None:
        """Count one sample, whose media have these paths and this hash."""
        self.tasks.append(self.names.setdefault(sample.task, len(self.names)))
        self.media.append(media)
        self._patients.append(hash(sample.meta.patient or (paths[0] if paths else sample.id)))

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
    """Ids seen so far, 12 to 24 bytes each however long they are.

    Hashes of 64 bits take the place of the ids. Among twenty million, two different ids share one with a probability
    of 1 in 100,000; the later one would be called a repetition.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))  # open addressing with linear probing; 0 is an empty slot
        self._count = 0

    def add(self, one: str) -> bool:
        """Take an id in; say whether it is new."""
        if 3 * self._count > 2 * len(self._slots):
            self._grow()
        key = hash(one) & (2**64 - 1) or 1
        slot = self._slot(key)
        if self._slots[slot] == key:
            return False
        self._slots[slot] = key
        self._count += 1
        return True

    def __contains__(self, one: str) -> bool:
        key = hash(one) & (2**64 - 1) or 1
        return self._slots[self._slot(key)] == key

    def _slot(self, key: int) -> int:
        """Return where a key stands, or would."""
        slots, last = self._slots, len(self._slots) - 1
        slot = key & last
        while slots[slot] not in (0, key):
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        keys = np.frombuffer(self._slots, np.uint64)
        keys = keys[keys != 0]
        slots = np.zeros(2 * len(self._slots), np.uint64)
        last = np.uint64(len(slots) - 1)
        wanted = keys & last
        while len(keys):
            free = slots[wanted] == 0
            slots[wanted[free]] = keys[free]  # of several that want a slot one gets it, the others move on
            left = slots[wanted] != keys
            keys, wanted = keys[left], (wanted[left] + np.uint64(1)) & last
        self._slots = array("Q", slots.tobytes())
