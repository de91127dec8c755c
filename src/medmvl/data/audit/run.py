"""An audit of one or several stores: every sample and every medium once, then the checks that compare them."""

from __future__ import annotations

import logging
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.core.log import get_logger
from medmvl.data.audit import checks, media, samples
from medmvl.data.audit.duplicates import ALIKE, ALIKE_TINY, DISTANCE, TINY
from medmvl.data.audit.findings import Example, Finding, Ledger, Names, reason
from medmvl.data.audit.identifiers import identifiers, masked
from medmvl.data.audit.samples import Facts, Origin
from medmvl.data.lines import decode
from medmvl.data.store import SampleStore, StoreError, read_manifest, split_names

FORMAT = 1
"""Version of audit.json: a field may be added within it, none changes its meaning."""

_MOST_SHOWN = 40  # names that statistics list of each aspect
_BARS = 24
_SPLIT = re.compile(r"(?:train|valid|val|dev|test)(?:ing|ation)?(?:[_-]?(?:\d{1,2}|all|full|mini|small|large))?", re.I)
"""Names of splits that can be no one's."""

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        findings: one per kind, the most severe first; empty for a clean set.
        splits: statistics of each split.
        lengths: histograms: of tokens by stage where a recipe was given, of words otherwise.
        skipped: what could not be looked at, and why.
        settings: thresholds, and what was asked for.
    """

    findings: tuple[Finding, ...]
    splits: tuple[dict[str, Any], ...]
    lengths: tuple[dict[str, Any], ...]
    skipped: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def blocks(self) -> bool:
        """Whether a finding is of a kind that the user marked."""
        return any(finding.blocking for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return audit.json."""
        return {
            "format": FORMAT,
            "blocks": self.blocks,
            "findings": [finding.to_dict() for finding in self.findings],
            "splits": list(self.splits),
            "lengths": list(self.lengths),
            "skipped": list(self.skipped),
            "settings": self.settings,
        }


@contextmanager
def _silent(what: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


def audit(
    stores: Sequence[str | Path],
    *,
    roots: Sequence[str | Path] = (),
    uses: Sequence[checks.Use] = (),
    skipped: Sequence[str] = (),
    blocking: frozenset[str] = frozenset(),
    names: Names = "ids",
    examples: int = 12,
    workers: int | None = None,
    scratch: str | Path | None = None,
    progress: Progress = _silent,
) -> Audit:
    """Look at all splits of some stores, and at what they share.

    Takes about 100 bytes of memory a sample, 100 a medium and 40 a box, and a kilobyte of disk a medium while it runs;
    every process holds one medium.

    Args:
        stores: folders, or JSONL files.
        roots: further folders that media may lie in.
        uses: what a recipe does with them.
        skipped: what the caller could not look at, for the report.
        blocking: kinds of findings that the user marked.
        names: what of the data is in the result: ids and paths, with identifiers masked; quoted texts, folders and rare
            answers too; or none of it, nor in a line of the log.
        examples: kept of each kind of finding.
        workers: processes; default: one per usable core.
        scratch: folder for temporary files; default: the system's.
        progress: as `cli.screen.progress`: yields a function that is told how much is done.

    Raises:
        StoreError: a store is not there, or holds nothing that can be read.
    """
    ledger = Ledger(examples, blocking, names)
    with (
        _quiet(ledger.names),
        tempfile.TemporaryDirectory(dir=scratch) as folder,
        tempfile.TemporaryFile(dir=scratch) as small,
    ):
        origins = _open(ledger, stores, roots, Path(folder))
        with progress("samples", sum(len(origin.store) for origin in origins)) as advance:
            facts = samples.look(origins, examples, workers, advance)
        usage = media.Usage.of(facts)
        with progress("media", len(usage)) as advance:
            seen = media.look(origins, usage, small, examples, workers, advance)
        checks.check_splits(ledger, origins)
        checks.check_rows(ledger, origins, facts)
        checks.check_media(ledger, origins, seen)
        checks.check_boxes(ledger, origins, facts, seen)
        checks.check_leaks(ledger, origins, facts, seen)
        checks.check_repeats(ledger, origins, facts)
        checks.check_balance(ledger, origins, facts)
        countable = [use for use in uses if use.tokens is not None]
        with progress("tokens", sum(len(use.rows(origin)) for use in countable for origin in origins)) as advance:
            lengths = checks.check_uses(ledger, origins, facts, uses, advance)
        pairs = enumerate(zip(origins, facts, strict=True))
        splits = tuple(_statistics(*pair, number, seen, ledger.names) for number, pair in pairs)
    settings = _settings(blocking, names)
    return Audit(tuple(ledger.findings()), splits, _histograms(lengths, facts), tuple(skipped), settings)


@contextmanager
def _quiet(names: bool) -> Iterator[None]:
    """Let warnings wait outside: they name files, and what they tell is either a finding or told again by training."""
    log = get_logger()
    level = log.level
    log.setLevel(level if names else logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _open(ledger: Ledger, stores: Sequence[str | Path], roots: Sequence[str | Path], scratch: Path) -> list[Origin]:
    """Open every split of every store once; one that cannot be opened is a finding."""
    origins: dict[tuple[Path, str], Origin] = {}
    titles: dict[Path, str] = {}
    for path in dict.fromkeys(Path(store).absolute() for store in stores):
        folder = path.parent if path.is_file() else path
        found = [path.stem] if path.is_file() else split_names(path)
        if not found:
            raise StoreError(f"{path}: no store is there; name a folder with train.jsonl, or a JSONL file")
        manifest = read_manifest(folder)
        name = titles.setdefault(folder, _title(folder, manifest, [*titles.values()], ledger.names))
        for place, split in enumerate(found, start=1):
            called = split if ledger.names or _SPLIT.fullmatch(split) else f"split {place}"
            store = _opened(ledger, path, split, (name, called), roots, scratch / str(len(origins)))
            if store is not None:
                recorded = manifest.get("splits", {}).get(split, {})
                origin = Origin(store, folder, name, split, called, (folder, *roots), recorded)
                origins.setdefault((folder, split), origin)
    if not origins:
        raise StoreError(f"nothing of {', '.join(map(str, stores))} can be read: {ledger.findings()[0].message}")
    return list(origins.values())


def _title(folder: Path, manifest: Mapping[str, Any], others: Sequence[str], names: bool) -> str:
    """Return what reports call a store: the name that its manifest gives, else its folder's, or only its number."""
    number = len(others) + 1
    title = str(manifest.get("name") or (folder.name if names else f"store {number}"))
    return f"{title} ({folder if names else number})" if title in others else title


def _opened(
    ledger: Ledger, path: Path, split: str, called: tuple[str, str], roots: Sequence[str | Path], scratch: Path
) -> SampleStore | None:
    """Open a split, without the lines that are no JSON; None where nothing of it can be read."""
    try:
        return SampleStore(path, split, roots=list(roots))
    except StoreError as error:
        file = path if path.is_file() else path / f"{split}.jsonl"
        told = str(error)
    broken = _mend(file, scratch / file.name) if file.is_file() else []
    examples = [
        Example(*called, line, place=f"line {line}", detail=reason(why), text=masked(why)) for line, why in broken
    ]
    ledger.add("broken_row", len(broken), f"{len(broken):,} lines of {'/'.join(called)} are no JSON", examples)
    try:
        return SampleStore(scratch / file.name, roots=[file.parent, *roots])
    except StoreError:
        detail = told if ledger.names else reason(told)
        ledger.add("broken_split", 1, f"{'/'.join(called)}: {detail}", [Example(*called, detail=detail)])
        return None


def _mend(file: Path, copy: Path) -> list[tuple[int, str]]:
    """Copy a JSONL file without its broken lines; return (line, what is wrong) of those."""
    broken = []
    copy.parent.mkdir()
    with file.open("rb") as given, copy.open("wb") as mended:
        for number, line in enumerate(given, start=1):
            try:
                decode(line, f"line {number}")
            except StoreError as error:
                if line.strip():
                    broken.append((number, str(error).partition(": ")[2]))
                line = b"\n"  # the others keep their numbers
            mended.write(line)
    return broken


def _statistics(origin: Origin, facts: Facts, number: int, seen: media.Media, names: bool) -> dict[str, Any]:
    """Return what is known of one split, for people and programs; names that may be a patient's on request only."""
    own = np.unique(seen.usage.of_origin(number)["media"].astype(np.int64))
    aspects: dict[str, Counter[str]] = defaultdict(Counter)
    for (aspect, name), count in facts.counts.items():
        aspects[aspect][name] = count
    return {
        "store": origin.name,
        "split": origin.called,
        **({"folder": str(origin.folder)} if names else {}),
        "sha256": origin.store.hash,
        "samples": len(origin.store),
        "patients": len(np.setdiff1d(facts.patient, [0])),
        "media": len(own),
        "by": {aspect: _top(_told(counts, names)) for aspect, counts in sorted(aspects.items())},
        "answers": _answers(facts, aspects["task"], names),
        "words": _summary(facts.words[facts.flags != samples.BROKEN]),
        "sizes": _sizes(seen, own),
    }


def _told(counts: Counter[str], names: bool) -> Counter[str]:
    """Return counts of names, those together that few samples have or that hold an identifier."""
    told: Counter[str] = Counter()
    for name, count in counts.items():
        known = name == "(none)" or (count >= checks.COMMON and not identifiers(name))
        told[name if names or known else checks.RARE] += count
    return told


def _answers(facts: Facts, tasks: Counter[str], names: bool) -> dict[str, dict[str, int]]:
    """Return task -> answer -> samples, of closed questions, the rare answers together."""
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for task, answers in sorted(checks.class_counts(facts).items()):
        (name,) = _told(Counter({task: tasks[task or "(none)"]}), names)
        for answer, count in answers.items():
            shown = names or checks.may_be_told(facts, task, answer, count)
            told[name][answer if shown else f"{checks.RARE[:-1]} answers)"] += count
    return {name: _top(counts) for name, counts in told.items()}


def _top(counts: Counter[str]) -> dict[str, int]:
    return dict(counts.most_common(_MOST_SHOWN))


def _sizes(seen: media.Media, own: np.ndarray) -> dict[str, Any]:
    """Return smallest, median and largest of every dimension that pictures and volumes have."""
    told: dict[str, Any] = {}
    good = own[seen.state[own] == media.GOOD]
    volume = seen.size[good, 0] > 0
    for kind, some, axes in (("image", good[~volume], "hw"), ("volume", good[volume], "dhw")):
        if not len(some):
            continue
        told[kind] = {"count": len(some)}
        for place, axis in enumerate("dhw"):
            if axis in axes:
                told[kind][{"d": "depth", "h": "height", "w": "width"}[axis]] = _summary(seen.size[some, place])
                spacing = seen.spacing[some, place]
                if np.isfinite(spacing).any():
                    name = {"d": "slice", "h": "row", "w": "column"}[axis]
                    told[kind][f"{name}_spacing_mm"] = _summary(spacing[np.isfinite(spacing)])
    return told


def _summary(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    low, middle, high = np.percentile(values, (0, 50, 100)).tolist()
    return {"smallest": round(low, 4), "median": round(middle, 4), "largest": round(high, 4)}


def _histograms(lengths: dict[tuple[str, int], np.ndarray], facts: Sequence[Facts]) -> tuple[dict[str, Any], ...]:
    if not lengths:
        return (
            _histogram(
                "words of a sample",
                np.concatenate([known.words[known.flags != samples.BROKEN] for known in facts]),
                None,
            ),
        )
    return tuple(_histogram(f"tokens, stage {stage}", values, limit) for (stage, limit), values in lengths.items())


def _histogram(title: str, values: np.ndarray, limit: int | None) -> dict[str, Any]:
    """Count values in bars of equal width that end beyond the limit; the last one takes the longest percent in."""
    if not len(values):
        return {"title": title, "limit": limit, "edges": [], "counts": [], "longest": 0}
    longest = int(values.max())
    end = max(int(np.percentile(values, 99)), *([limit] if limit else [1]))
    edges = np.unique(np.linspace(0, end * 1.05 + 1, _BARS + 1).astype(int))
    counts = np.histogram(np.minimum(values, edges[-1]), edges)[0]
    return {"title": title, "limit": limit, "edges": edges.tolist(), "counts": counts.tolist(), "longest": longest}


def _settings(blocking: frozenset[str], names: Names) -> dict[str, Any]:
    return {
        "names": names,
        "blocking": sorted(blocking),
        "near_duplicate": {"bits": DISTANCE, "correlation": ALIKE, "correlation_tiny": ALIKE_TINY, "tiny": TINY},
        "majority": checks.MAJORITY,
    }
