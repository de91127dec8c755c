"""Features of encoders that do not learn: computed once for all steps, epochs and runs, where that pays."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from medmvl.bundle import Bundle
from medmvl.core.log import bytes_text, get_logger
from medmvl.core.schema import SampleError
from medmvl.data.mixture import Item, Position
from medmvl.imaging.features import FeatureStore, Frame, Kept, blank_key
from medmvl.imaging.prepare import blank
from medmvl.imaging.shards import RESERVE
from medmvl.model.frozen import FrozenEncoder, feature_bytes, fingerprint, why_not
from medmvl.model.vlm import VLM
from medmvl.processing.encoded import Media
from medmvl.train.feed import ChatPreparer, Feed, loader
from medmvl.train.loop import Stop
from medmvl.train.objectives import Objective
from medmvl.train.recipe import Run, Stage
from medmvl.train.strategy import Engine

_LOG = get_logger(__name__)
_LOOKED_AT = 64  # samples that tell how many media there are, and how many lack features
_WORTH = 2 / 3  # keeping features must take at most this share of the time that computing them does
_OFTEN = 30.0  # seconds between two lines of progress
_ALIKE = 0.02  # how far the same features may be apart, by their norm, on another device or with another torch

Shown = tuple[int, Item]
"""Number of the preparer that reads it, and a sample."""


def why_computed(model: VLM, tower: str, stage: Stage) -> str | None:
    """Return why a tower's features cannot be kept in a stage, None where they can.

    Args:
        model: tuned for the stage; on the meta device will do.
        tower: its name.
        stage: of the recipe.
    """
    if stage.objective != "chat":
        return f"objective {stage.objective} trains an encoder"
    if stage.augmentation is not None and any(stage.augmentation.model_dump().values()):
        return "media are augmented"
    return why_not(model, tower)


def room(folder: str | Path) -> int:
    """Return the bytes that features may take in a folder: half of what is free on its disk, the reserve left out."""
    place = Path(folder).absolute()
    free = shutil.disk_usage(next(one for one in (place, *place.parents) if one.exists())).free
    return max(0, free - RESERVE) // 2


@dataclass
class _Tower:
    """A tower whose features can be kept.

    Attributes:
        name: of the tower.
        kept: where its features are, and what made them.
        encoder: at work.
        size: bytes of the features of one medium.
        media, missing: how many media the stage shows, and how many of them lack features; estimates.
    """

    name: str
    kept: Kept
    encoder: FrozenEncoder
    size: int
    media: int = 0
    missing: int = 0


class _Found(NamedTuple):
    """A medium without features, as a loader process read it."""

    tower: str
    key: str
    pixels: torch.Tensor
    frame: Frame


class Features:
    """What one rank does about the features of a stage.

    The features of a tower are either all kept or all computed, on every rank alike: under sharding no rank may run an
    encoder that another does not run.

    Args:
        objective: of the stage; its preparers are exchanged for such that find features.
        bundle: with the weights that the stage goes on with, not yet spread.
        stage, run: of the recipe.
        precision: "fp32" or "bf16".
        engine: knows the other ranks.

    Attributes:
        kept: towers that read features now.
    """

    def __init__(
        self, objective: Objective, bundle: Bundle, stage: Stage, run: Run, precision: str, engine: Engine
    ) -> None:
        self.objective, self.bundle, self.stage, self.run = objective, bundle, stage, run
        self.precision, self.engine = precision, engine
        both = (objective.preparer, objective.held_out_preparer)
        self.preparers = [one for one in both if isinstance(one, ChatPreparer)]
        self.shown: list[Shown] = []
        self.times = 0.0
        self.kept: list[str] = []
        self._told = time.perf_counter()

    def keep(self, start: Position, steps: int, stop: Stop, before: Collection[str] | None = None) -> bool:
        """Complete the features of every tower where it pays, and let the stage read them.

        Args:
            start: where in the data the stage goes on.
            steps: optimizer steps that are left.
            stop: says by its `asked` whether this process is to leave.
            before: of a resumed stage, the towers that read features until then: it stays with them, for computing
                features in other batches than they were kept in would round them otherwise.

        Returns:
            Whether a rank is to leave; nothing was changed then.
        """
        if self.run.features is None or not self.preparers:
            return False
        self._plan(start, steps)
        seen = self._towers_seen()
        run = {*seen, *self.preparers[0].towers, *(before or ())}  # a tower without media runs on blank ones
        names = [name for name in self.bundle.model.towers if name in run]
        reasons = {name: why_computed(self.bundle.model, name, self.stage) for name in names}
        with ExitStack() as stack:
            towers = [self._tower(name, stack) for name, reason in reasons.items() if reason is None]
            reasons |= self._judge(towers, before)
            self._tell(towers, {name: reason for name, reason in reasons.items() if name in seen})
            towers = [one for one in towers if reasons[one.name] is None]
            preparers = self._reading(towers)
            complete = not towers or self._complete(towers, preparers, stop)
        if complete:
            self.objective.preparer, *held_out = preparers
            self.objective.held_out_preparer = held_out[0] if held_out else None
            self.kept = [one.name for one in towers]
        return any(self.engine.collect(stop.asked))

    def _plan(self, start: Position, steps: int) -> None:
        """Find out which samples are needed to see every medium of the stage once, and how often each is shown."""
        order, drop = self.objective.order, self.preparers[0].drop_media
        keys = [store.media_keys * (not dropped) for store, dropped in zip(order.stores, drop, strict=True)]  # 0: none
        there = _distinct([store.path for store in order.stores], keys)
        first: dict[tuple[Path, int], Item] = {}
        groups = planned = 0
        for step in islice(order.steps(self.stage.global_batch, start), steps):
            planned += 1
            for group in step.groups:
                source, row = group[0]
                if key := int(keys[source][row]):
                    groups += 1
                    first.setdefault((order.stores[source].path, key), group[0])
            if len(first) == there:
                break
        self.shown = [(0, item) for item in first.values()]
        self.times = groups / max(1, len(first)) * steps / max(1, planned)
        for step in self.objective.held_out() if self.objective.held_out else ():
            self.shown += [(1, group[0]) for group in step.groups]

    def _towers_seen(self) -> set[str]:
        """Return the towers that have media among some samples; another may have one all the same."""
        return {medium.tower for one in self._some() for medium in _media(self.preparers, one)}

    def _some(self) -> list[Shown]:
        return self.shown[:: max(1, len(self.shown) // _LOOKED_AT)]

    def _tower(self, name: str, stack: ExitStack) -> _Tower:
        """Let a tower's encoder see a blank medium, and count what is kept of the others."""
        model = self.bundle.model
        encoder = stack.enter_context(FrozenEncoder(model, name, self.engine.device, self.precision))
        store = FeatureStore(str(self.run.features), hashes=self.preparers[0].processor.store)
        store.refresh()
        made = fingerprint(model, self.bundle.config, name, self.precision)
        grey = torch.from_numpy(blank(model.towers[name].encoder.spec))
        kept = Kept(store, made, encoder(grey[None])[0])
        tower = _Tower(name, kept, encoder, feature_bytes(model.towers[name].encoder, self.precision))
        preparers = self._reading([tower])
        some = self._some()
        media = {one.path: one for shown in some for one in _media(preparers, shown) if one.tower == name}
        lacking = sum(not _has_features(one) for one in media.values())
        scale = len(self.shown) / max(1, len(some))
        tower.media, tower.missing = round(len(media) * scale), round(lacking * scale)
        return tower

    def _judge(self, towers: Sequence[_Tower], before: Collection[str] | None) -> dict[str, str | None]:
        """Return why features are not kept after all, by tower; the first rank that has a reason is heard."""
        own = [self._why_not(tower) or self._why_compute(tower, before) for tower in towers]
        heard = zip(*self.engine.collect(own), strict=True)
        return {
            tower.name: next((reason for reason in reasons if reason), None)
            for tower, reasons in zip(towers, heard, strict=True)
        }

    def _why_not(self, tower: _Tower) -> str | None:
        """Say why features of a tower cannot be kept, None where they can."""
        store, key = tower.kept.store, blank_key(tower.kept.made)
        if store.holds(key) and not _alike(store, key, tower.kept.blank):
            return (
                f"those in {store.folder} differ from what its encoder gives now, though its weights are the same: "
                "delete that folder, it was written by other code"
            )
        needed, free = tower.missing * tower.size, room(store.folder)
        if needed > free:
            taken = f"{bytes_text(free)} may be taken in {store.folder}, half of what is free there"
            return f"they need {bytes_text(needed)}, and {taken}"
        return None

    def _why_compute(self, tower: _Tower, before: Collection[str] | None) -> str | None:
        """Say why features of a tower had better be computed at every use, None where it pays to keep them.

        What is there already is used without a further look.
        """
        if before is not None:
            return None if tower.name in before else "as they were before the run was resumed"
        if not self.engine.main or not tower.missing:
            return None
        store, key = tower.kept.store, blank_key(tower.kept.made)
        shown = tower.media * self.times
        if tower.missing > _WORTH * shown:
            return f"each medium is shown {self.times:.2g} times only, which saves too little in this stage"
        if not store.holds(key) and not store.put(key, tower.kept.blank, {}):
            return f"{store.folder} cannot be written to"
        reading, computing = store.seconds_to_read(key), self._seconds_to_compute(tower)
        kept, computed = tower.missing * (computing + reading) + shown * reading, shown * computing
        if kept > _WORTH * computed:
            return (
                f"with {1000 * reading:.3g} ms to read and {1000 * computing:.3g} ms to compute them, and each medium "
                f"shown {self.times:.2g} times, keeping them takes {kept / computed:.0%} of the time"
            )
        return None

    def _seconds_to_compute(self, tower: _Tower) -> float:
        """Return how long the encoder takes for one medium, of as many as it is given."""
        spec = self.bundle.model.towers[tower.name].encoder.spec
        grey = torch.from_numpy(np.stack([blank(spec)] * tower.encoder.at_once))
        found = []
        for _ in range(2):
            start = time.perf_counter()
            tower.encoder(grey)
            found.append(time.perf_counter() - start)
        return min(found) / len(grey)

    def _tell(self, towers: Sequence[_Tower], reasons: Mapping[str, str | None]) -> None:
        if not self.engine.main:
            return
        for name, reason in reasons.items():
            if reason is not None:
                _LOG.info("features of the %s encoder: computed at every use: %s", name, reason)
        for one in towers:
            if one.name in reasons and reasons[one.name] is None:
                todo = f"about {one.missing:,} to be computed first" if one.missing else "all there"
                _LOG.info(
                    "features of the %s encoder: kept in %s, about %s media of %s, %s",
                    one.name, self.run.features, f"{one.media:,}", bytes_text(one.size), todo,
                )  # fmt: skip

    def _reading(self, towers: Sequence[_Tower]) -> list[ChatPreparer]:
        """Return the preparers with processors that find the features of some towers."""
        kept = {tower.name: tower.kept for tower in towers}
        return [replace(one, processor=one.processor.with_kept(kept)) for one in self.preparers]

    def _complete(self, towers: Sequence[_Tower], preparers: Sequence[ChatPreparer], stop: Stop) -> bool:
        """Compute what is missing, shared out among the ranks; return whether that is done, on all of them.

        Machines that share no disk complete their own in a second round.
        """
        started, total = time.perf_counter(), 0
        for rank, world in _shares(self.engine):
            own = self.shown[rank::world]
            random.SystemRandom().shuffle(own)  # runs that fill one folder at the same time take on different media
            made = self._compute(own, {one.name: one for one in towers}, preparers, stop)
            everyone = self.engine.collect(made)
            for tower in towers:
                tower.kept.store.refresh()
            if None in everyone:
                if self.engine.main and not stop.asked:
                    _LOG.warning("features cannot be kept: %s; they are computed at every use", self.run.features)
                return False
            total += sum(everyone)
            if not any(everyone):
                break
        if self.engine.main and total:
            _LOG.info("features: %s computed in %.0f s", f"{total:,}", time.perf_counter() - started)
        return True

    def _compute(
        self, shown: Sequence[Shown], towers: Mapping[str, _Tower], preparers: Sequence[ChatPreparer], stop: Stop
    ) -> int | None:
        """Return how many features were computed and stored; None when that was given up."""
        waiting: dict[str, list[_Found]] = {name: [] for name in towers}
        made = 0
        source = loader(Feed(lambda: shown, lambda one: list(_lacking(preparers, one))), self.run.workers)
        for looked, found in enumerate(source, 1):
            for one in found:
                waiting[one.tower].append(one)
                if len(waiting[one.tower]) == towers[one.tower].encoder.at_once:
                    done = _store(towers[one.tower], waiting[one.tower])
                    if done is None:
                        return None
                    made, waiting[one.tower] = made + done, []
            if stop.asked:
                return None
            self._progress(looked, len(shown), made)
        rest = [_store(towers[name], left) for name, left in waiting.items()]
        return None if None in rest else made + sum(rest)

    def _progress(self, looked: int, of: int, made: int) -> None:
        now = time.perf_counter()
        if self.engine.main and made and now - self._told > _OFTEN:
            self._told = now
            _LOG.info("features: %s computed, %.0f%% of the media seen", f"{made:,}", 100 * looked / of)


def _distinct(files: Sequence[Path], keys: Sequence[np.ndarray]) -> int:
    """Return how many media several sources have, given the file of each and the media keys of its rows, 0 for none."""
    by_file: dict[Path, list[np.ndarray]] = {}
    for file, own in zip(files, keys, strict=True):
        by_file.setdefault(file, []).append(own)
    return sum(np.count_nonzero(np.unique(np.concatenate(own))) for own in by_file.values())


def _media(preparers: Sequence[ChatPreparer], shown: Shown) -> tuple[Media, ...]:
    """Return the media of a sample, none where it is refused: that is told when it is its turn."""
    number, item = shown
    preparer = preparers[number]
    if preparer.drop_media[item[0]]:
        return ()
    try:
        return preparer.processor.media(preparer.read(item))
    except SampleError:
        return ()


def _lacking(preparers: Sequence[ChatPreparer], shown: Shown) -> Iterator[_Found]:
    """Read the media of a sample that lack features; broken ones are passed over, for the same reason."""
    for medium in _media(preparers, shown):
        kept = medium.kept
        if kept is None:
            continue
        try:
            entry = kept.entry(medium.path, medium.manner)
            if entry is None or kept.store.holds(entry.key):
                continue
            view = kept.store.steady(entry, lambda medium=medium: medium.view)
        except (ValueError, OSError):
            continue
        yield _Found(medium.tower, entry.key, torch.from_numpy(view.pixels), Frame(view.affine, view.file_size))


def _has_features(medium: Media) -> bool:
    """Whether nothing need be computed for a medium; so it is with a file that cannot be read."""
    kept = medium.kept
    try:
        entry = None if kept is None else kept.entry(medium.path, medium.manner)
    except (ValueError, OSError):
        return True
    return kept is None or entry is None or kept.store.holds(entry.key)


def _store(tower: _Tower, found: Sequence[_Found]) -> int | None:
    """Compute and store features that nobody has stored meanwhile; return how many, None where it was impossible."""
    store = tower.kept.store
    store.refresh()
    left = {one.key: one for one in found if not store.holds(one.key)}
    if not left:
        return 0
    features = tower.encoder(torch.stack([one.pixels for one in left.values()]))
    stored = [tower.kept.put(key, array, one.frame) for (key, one), array in zip(left.items(), features, strict=True)]
    return len(stored) if all(stored) else None


def _alike(store: FeatureStore, key: str, now: np.ndarray) -> bool:
    """Whether a blank medium gets the features that are kept of one."""
    found = store.get(key)
    if found is None:
        return True
    then, now = found[0].astype(np.float32), now.astype(np.float32)
    return then.shape == now.shape and bool(np.linalg.norm(then - now) <= _ALIKE * np.linalg.norm(now))


def _shares(engine: Engine) -> list[tuple[int, int]]:
    """Return this process's number, and of how many: among all, then among those of its machine if there are others."""
    local = int(os.environ.get("LOCAL_RANK", engine.rank)), int(os.environ.get("LOCAL_WORLD_SIZE", engine.world))
    return list(dict.fromkeys([(engine.rank, engine.world), local]))
