"""The cache of prepared volumes: what it serves, what it never serves, and what may happen to its files."""

import hashlib
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from medmvl.core.atomic import DiskFullError
from medmvl.imaging import cache, content, shards, workers
from medmvl.imaging.cache import PreparedStore, entry_bytes
from medmvl.imaging.fill import Outcome, prepare_all
from medmvl.imaging.fit import Fitted, fit_volume
from medmvl.imaging.picture import ImageError
from medmvl.imaging.read import read_volume
from medmvl.imaging.spec import VisionSpec
from medmvl.imaging.volume import Volume

SPEC = VisionSpec(size=(4, 12, 10), channels=1, mean=(0.5,), std=(0.5,))
FORK = multiprocessing.get_context("fork")


class Reader:
    """`read_volume`, counting."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, path: str | Path) -> Volume:
        self.paths.append(str(path))
        return read_volume(path)


def _never(path: str | Path) -> Volume:
    raise AssertionError(f"{path} was read")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files that were written a moment ago count as unchanged since long."""
    monkeypatch.setattr(content, "_SETTLED", -(10**9))


@pytest.fixture
def volume(tmp_path: Path) -> str:
    return str(phantom.write(tmp_path / "a.nii.gz"))


def _same(one: Fitted, other: Fitted) -> bool:
    return (
        one.values.dtype == other.values.dtype
        and np.array_equal(one.values, other.values)
        and np.array_equal(one.to_spec, other.to_spec)
        and (one.file_size, one.spacing, one.oriented) == (other.file_size, other.spacing, other.oriented)
    )


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.glob(f"*{suffix}"))


def _many(folder: Path, count: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    return [str(phantom.write(folder / f"{n}.nii", array=phantom.values() + n)) for n in range(count)]


# What it serves


@pytest.mark.parametrize("levels", ["int16", "uint8", "uint8_floor"])
def test_a_hit_equals_the_computed_bit_for_bit(volume: str, tmp_path: Path, levels: str) -> None:
    spec = SPEC.model_copy(update={"levels": levels, "crop_foreground": 0.0, "hu_window": (-900.0, 600.0)})
    expected = fit_volume(read_volume(volume), spec)
    first = PreparedStore(tmp_path / "cache").fitted(volume, spec)
    hit = PreparedStore(tmp_path / "cache").fitted(volume, spec, _never)
    assert _same(first, expected) and _same(hit, expected)
    assert hit.values.dtype == (np.int16 if levels == "int16" else np.uint8)
    assert hit.to_spec.dtype == np.float64 and hit.to_spec.shape == (3, 4)


def test_values_are_read_only_and_mapped(volume: str, tmp_path: Path) -> None:
    store = PreparedStore(tmp_path / "cache")
    for fitted in (store.fitted(volume, SPEC), store.fitted(volume, SPEC)):
        with pytest.raises(ValueError, match="read-only"):
            fitted.values[0, 0, 0] = 1
    base = store.fitted(volume, SPEC).values
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, memoryview) or type(base).__name__ == "mmap"


@pytest.mark.usefixtures("settled")
def test_a_hit_costs_no_hashing(volume: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PreparedStore(tmp_path / "cache").fitted(volume, SPEC)
    monkeypatch.setattr(hashlib, "file_digest", None)
    PreparedStore(tmp_path / "cache").fitted(volume, SPEC, _never)


def test_the_same_content_elsewhere_is_found(volume: str, tmp_path: Path) -> None:
    store = PreparedStore(tmp_path / "cache")
    store.fitted(volume, SPEC)
    shutil.copy(volume, tmp_path / "b.nii.gz")
    assert store.fitted(tmp_path / "b.nii.gz", SPEC, _never).values.shape == SPEC.size


def test_specs_lie_side_by_side(volume: str, tmp_path: Path) -> None:
    store = PreparedStore(tmp_path / "cache")
    changes = [{}, {"size": (2, 3, 4)}, {"orientation": "IAR"}, {"antialias": False}, {"levels": "uint8"}]
    changes += [{"percentile_window": (1.0, 99.0)}, {"spacing": (3.0, 1.0, 1.0)}, {"fit": "crop"}, {"depth": "sample"}]
    specs = [SPEC.model_copy(update=change) for change in changes]
    for spec in specs:
        reader = Reader()
        store.fitted(volume, spec, reader)
        assert len(reader.paths) == 1, spec
    for spec in specs:
        assert _same(store.fitted(volume, spec, _never), fit_volume(read_volume(volume), spec))


def test_what_acts_on_fitted_values_shares_them(volume: str, tmp_path: Path) -> None:
    store = PreparedStore(tmp_path / "cache")
    store.fitted(volume, SPEC)
    store.fitted(volume, VisionSpec(size=SPEC.size, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), rescale=1.0), _never)


def test_the_fragment_counts(volume: str, tmp_path: Path) -> None:
    store = PreparedStore(tmp_path / "cache")
    plain = store.fitted(volume, SPEC)
    moved = store.fitted(f"{volume}#slope=2&intercept=-500", SPEC)
    assert _same(plain, fit_volume(read_volume(volume), SPEC))
    assert _same(moved, fit_volume(read_volume(f"{volume}#slope=2&intercept=-500"), SPEC))
    assert not np.array_equal(plain.values, moved.values)


# What it never serves


@pytest.mark.parametrize("old", [True, False])
def test_a_changed_file_is_prepared_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    """Same path, same size, same time of modification; changed long after, or right after it was cached."""
    if old:
        monkeypatch.setattr(content, "_SETTLED", -(10**9))
    path = phantom.write(tmp_path / "a.nii")
    before = path.stat()
    store = PreparedStore(tmp_path / "cache")
    first = store.fitted(path, SPEC)
    time.sleep(0.05 * old)  # beyond the clock tick of the file system
    with path.open("r+b") as file:  # in place: the inode stays too
        file.seek(-400, os.SEEK_END)
        file.write(b"\x10" * 400)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    for one in (store, PreparedStore(tmp_path / "cache")):
        second = one.fitted(path, SPEC)
        assert _same(second, fit_volume(read_volume(path), SPEC))
        assert not np.array_equal(first.values, second.values)


@pytest.mark.usefixtures("settled")
def test_a_file_that_changes_back_is_found(tmp_path: Path) -> None:
    path, store = phantom.write(tmp_path / "a.nii"), PreparedStore(tmp_path / "cache")
    first = store.fitted(path, SPEC)
    phantom.write(path, array=phantom.values() + 5)
    store.fitted(path, SPEC)
    time.sleep(0.05)
    phantom.write(path)
    assert _same(store.fitted(path, SPEC, _never), first)


@pytest.mark.usefixtures("settled")
def test_a_file_that_is_gone_is_an_error(volume: str, tmp_path: Path) -> None:
    store = PreparedStore(tmp_path / "cache")
    store.fitted(volume, SPEC)
    os.remove(volume)
    with pytest.raises(ImageError, match=r"a\.nii\.gz.*does not exist"):
        store.fitted(volume, SPEC)


def test_a_file_that_changes_while_it_is_read_is_refused(volume: str, tmp_path: Path) -> None:
    def slow(path: str | Path) -> Volume:
        found = read_volume(path)
        phantom.write(Path(volume), array=phantom.values() + 9)
        return found

    store = PreparedStore(tmp_path / "cache")
    with pytest.raises(ImageError, match=r"a\.nii\.gz.*changed while"):
        store.fitted(volume, SPEC, slow)
    assert _same(store.fitted(volume, SPEC), fit_volume(read_volume(volume), SPEC))


@pytest.mark.usefixtures("settled")
def test_every_file_of_a_folder_counts(tmp_path: Path) -> None:
    series = tmp_path / "series"
    _many(series, 3)

    def read(path: str | Path) -> Volume:  # any reader of folders
        parts = [read_volume(one) for one in sorted(Path(path).iterdir())]
        total = sum(part.array.astype(np.float32) for part in parts)
        return Volume(total, *[getattr(parts[0], n) for n in ("spacing", "origin", "direction", "modality", "unit")],
                      path=str(path), original=parts[0].original)  # fmt: skip

    store = PreparedStore(tmp_path / "cache")
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: phantom.write(series / "1.nii", array=phantom.values()[::-1].copy()),
        lambda: phantom.write(series / "9.nii", array=phantom.values()[:, ::-1].copy()),
        lambda: (series / "0.nii").unlink(),
    ]
    for change in changes:
        change()
        assert _same(store.fitted(series, SPEC, read), fit_volume(read(series), SPEC))
        store.fitted(series, SPEC, _never)
    shutil.copytree(series, tmp_path / "copy")
    store.fitted(tmp_path / "copy", SPEC, _never)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(("name", "data"), [("a.mhd", "a.raw"), ("a.nhdr", "a.raw"), ("a.hdr", "a.img")])
def test_values_beside_a_header_count(tmp_path: Path, name: str, data: str) -> None:
    sitk.WriteImage(phantom.image(), str(tmp_path / name))
    found = tmp_path / data
    if not found.exists():  # some versions compress
        (found,) = [one for one in tmp_path.iterdir() if one.name != name]
    store = PreparedStore(tmp_path / "cache")
    store.fitted(tmp_path / name, SPEC, _itk)
    store.fitted(tmp_path / name, SPEC, _never)
    time.sleep(0.05)
    found.write_bytes(bytes(reversed(found.read_bytes())))
    assert _same(store.fitted(tmp_path / name, SPEC, _itk), fit_volume(_itk(tmp_path / name), SPEC))


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.nhdr", "Data File: slices/all.raw"),
        (
            "a.nhdr",
            "data file: LIST\nslices/0.raw\nslices/1.raw\nslices/2.raw\nslices/3.raw\nslices/4.raw\nslices/5.raw",
        ),
        ("a.nhdr", "data file: slices/%d.raw 0 5 1"),
        ("no_suffix", "data file: slices/all.raw"),
    ],
)
def test_values_that_a_header_names_in_other_ways_count(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "slices").mkdir()
    values = phantom.values()
    values.tofile(tmp_path / "slices" / "all.raw")
    for number, plane in enumerate(values):
        plane.tofile(tmp_path / "slices" / f"{number}.raw")
    header = phantom.write(tmp_path / "a.nhdr").read_text().replace("data file: a.raw", told)
    (tmp_path / "a.nhdr").unlink()
    (tmp_path / name).write_text(header)
    store = PreparedStore(tmp_path / "cache")
    store.fitted(tmp_path / name, SPEC)
    (tmp_path / "a.raw").write_bytes(b"something else beside it")
    store.fitted(tmp_path / name, SPEC, _never)
    time.sleep(0.05)
    for found in (tmp_path / "slices").iterdir():
        found.write_bytes(bytes(reversed(found.read_bytes())))
    assert _same(store.fitted(tmp_path / name, SPEC), fit_volume(read_volume(tmp_path / name), SPEC))


def _itk(path: str | Path) -> Volume:
    from medmvl.imaging.orient import from_file

    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return from_file(array, phantom.SPACING, phantom.ORIGIN, phantom.STRAIGHT, path)


# What may happen to its files


def _die(at: str, folder: Path, path: str) -> None:
    """Store a volume in a process that is killed when half of the data, or of the index line, is written."""

    def write(file: object, data: memoryview) -> None:
        if (at == "data") == (len(data) == entry_bytes(SPEC)):
            file.write(data[: len(data) // 2])  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        real(file, data)

    real, shards._write = shards._write, write
    PreparedStore(folder).fitted(path, SPEC)


@pytest.mark.parametrize("at", ["data", "line"])
def test_a_killed_writer_leaves_no_entry(tmp_path: Path, at: str) -> None:
    first, second = _many(tmp_path / "in", 2)
    folder = tmp_path / "cache"
    store = PreparedStore(folder)
    store.fitted(first, SPEC)
    process = FORK.Process(target=_die, args=(at, folder, second))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(_files(folder, ".bin")) == 2
    for one in (store, PreparedStore(folder)):
        assert _same(one.fitted(second, SPEC), fit_volume(read_volume(second), SPEC))
    for path in (first, second):
        PreparedStore(folder).fitted(path, SPEC, _never)


def _prepare(folder: Path, paths: list[str], barrier: object, queue: object) -> None:
    store = PreparedStore(folder)
    barrier.wait()  # type: ignore[attr-defined]
    queue.put([store.fitted(path, SPEC).values.copy() for path in paths])  # type: ignore[attr-defined]


def test_processes_that_write_at_once(tmp_path: Path) -> None:
    paths, folder = _many(tmp_path / "in", 20), tmp_path / "cache"
    barrier, queue = FORK.Barrier(3), FORK.Queue()
    processes = [FORK.Process(target=_prepare, args=(folder, paths, barrier, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    store = PreparedStore(folder)
    for number, path in enumerate(paths):
        expected = fit_volume(read_volume(path), SPEC)
        assert all(np.array_equal(result[number], expected.values) for result in results)
        assert _same(store.fitted(path, SPEC, _never), expected)


def test_a_fork_has_a_shard_of_its_own(tmp_path: Path) -> None:
    paths, folder = _many(tmp_path / "in", 12), tmp_path / "cache"
    store = PreparedStore(folder)
    store.fitted(paths[0], SPEC)  # the writer is open
    children = [FORK.Process(target=_use, args=(store, paths[1 + 2 * n : 3 + 2 * n])) for n in range(4)]
    for child in children:
        child.start()
    for path in paths[9:]:
        store.fitted(path, SPEC)
    for child in children:
        child.join()
        assert child.exitcode == 0
    for path in paths:
        store.fitted(path, SPEC, _never)  # finds what its children stored
        PreparedStore(folder).fitted(path, SPEC, _never)
    assert len(_files(folder, ".bin")) == 5


def _use(store: PreparedStore, paths: list[str]) -> None:
    for path in paths:
        store.fitted(path, SPEC)


def test_a_pickled_store_works_and_shares_no_shard(tmp_path: Path) -> None:
    first, second = _many(tmp_path / "in", 2)
    store = PreparedStore(tmp_path / "cache")
    store.fitted(first, SPEC)
    other = pickle.loads(pickle.dumps(store))
    other.fitted(first, SPEC, _never)
    other.fitted(second, SPEC)
    assert len(_files(tmp_path / "cache", ".bin")) == 2
    store.fitted(second, SPEC, _never)


def test_shards_end_at_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    paths, folder = _many(tmp_path / "in", 7), tmp_path / "cache"
    store = PreparedStore(folder)
    for path in paths:
        store.fitted(path, SPEC)
    assert [file.stat().st_size > 100_000 for file in _files(folder, ".bin")].count(True) == 2
    for path in paths:
        PreparedStore(folder).fitted(path, SPEC, _never)


@pytest.mark.parametrize("what", [".bin", ".jsonl"])
def test_rotten_bits_are_noticed(volume: str, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = PreparedStore(tmp_path / "cache").fitted(volume, SPEC)
    (file,) = _files(tmp_path / "cache", what)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)
    store, reader = PreparedStore(tmp_path / "cache"), Reader()
    assert _same(store.fitted(volume, SPEC, reader), expected) and len(reader.paths) == 1
    assert ("damaged" in caplog.text) == (what == ".bin")
    PreparedStore(tmp_path / "cache").fitted(volume, SPEC, _never)  # the new copy serves


@pytest.mark.parametrize("harm", ["cut off", "deleted"])
def test_a_shard_that_is_cut_off_or_gone(volume: str, tmp_path: Path, harm: str) -> None:
    expected = PreparedStore(tmp_path / "cache").fitted(volume, SPEC)
    (file,) = _files(tmp_path / "cache", ".bin")
    if harm == "deleted":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size - 1)
    assert _same(PreparedStore(tmp_path / "cache").fitted(volume, SPEC), expected)
    PreparedStore(tmp_path / "cache").fitted(volume, SPEC, _never)


def test_the_folder_can_be_moved_and_deleted(volume: str, tmp_path: Path) -> None:
    store = PreparedStore(tmp_path / "cache")
    kept = store.fitted(volume, SPEC)
    kept = store.fitted(volume, SPEC)
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    assert _same(PreparedStore(tmp_path / "elsewhere").fitted(volume, SPEC, _never), kept)
    assert "can be deleted at any time" in (tmp_path / "elsewhere" / "README.txt").read_text()
    shutil.rmtree(tmp_path / "elsewhere")
    store.fitted(volume, SPEC)
    shutil.rmtree(tmp_path / "cache")  # under its open shard
    assert _same(store.fitted(volume, SPEC), kept)
    PreparedStore(tmp_path / "cache").fitted(volume, SPEC, _never)


# Where nothing can be written


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    paths = _many(tmp_path / "in", 3)
    store = PreparedStore(tmp_path / "file" / "cache")
    for path in paths:
        assert _same(store.fitted(path, SPEC), fit_volume(read_volume(path), SPEC))
    (told,) = [one.getMessage() for one in caplog.records if one.name == content.__name__]
    assert "run.prepared=null" in told


def test_a_folder_that_may_only_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries are served; what is missing is computed."""
    paths = _many(tmp_path / "in", 3)
    PreparedStore(tmp_path / "cache").fitted(paths[0], SPEC)

    def refuse(self: object, folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(shards._Writer, "__init__", refuse)
    store = PreparedStore(tmp_path / "cache")
    store.fitted(paths[0], SPEC, _never)
    for path in paths:
        assert _same(store.fitted(path, SPEC), fit_volume(read_volume(path), SPEC))
    (told,) = [one.getMessage() for one in caplog.records if one.name == content.__name__]
    assert "Permission denied" in told
    with pytest.raises(DiskFullError, match="Permission denied"):
        PreparedStore(tmp_path / "cache", strict=True).prepare(paths[1], SPEC)


def test_a_disk_that_is_nearly_full_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _many(tmp_path / "in", 2)
    PreparedStore(tmp_path / "cache").fitted(first, SPEC)
    usage = shutil.disk_usage(tmp_path)._replace(free=shards.RESERVE + 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    store = PreparedStore(tmp_path / "cache")
    store.fitted(first, SPEC, _never)
    assert _same(store.fitted(second, SPEC), fit_volume(read_volume(second), SPEC))
    assert "1,024 MiB are free" in caplog.text and "run.prepared=null" in caplog.text
    with pytest.raises(DiskFullError, match="free some space, or choose another folder"):
        PreparedStore(tmp_path / "cache", strict=True).prepare(second, SPEC)


def _filled(folder: Path, paths: list[str], queue: object) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000))  # the second array begins at 65,536; the third fails
    store = PreparedStore(folder)
    same = [_same(store.fitted(path, SPEC), fit_volume(read_volume(path), SPEC)) for path in paths]
    queue.put(same)  # type: ignore[attr-defined]


def test_a_write_that_fails_half_way(tmp_path: Path) -> None:
    paths, folder, queue = _many(tmp_path / "in", 5), tmp_path / "cache", FORK.Queue()
    process = FORK.Process(target=_filled, args=(folder, paths, queue))
    process.start()
    assert queue.get(timeout=60) == [True] * 5
    process.join()
    store = PreparedStore(folder)
    reader = Reader()
    for path in paths:
        assert _same(store.fitted(path, SPEC, reader), fit_volume(read_volume(path), SPEC))
    assert reader.paths == paths[2:]


# Filling it


def test_filling_lists_broken_volumes_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = _many(tmp_path / "in", 6)
    (tmp_path / "in" / "cut.nii").write_bytes(Path(paths[0]).read_bytes()[:300])
    deadly, gone, cut = (str(tmp_path / "in" / f"{name}.nii") for name in ("deadly", "gone", "cut"))
    Path(deadly).write_bytes(Path(paths[0]).read_bytes() + b"\0")

    def read(path: str | Path) -> Volume:
        if str(path) == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return read_volume(path)

    monkeypatch.setattr(cache, "read_volume", read)
    jobs = [(path, SPEC) for path in (gone, deadly, *paths[:3], cut, *paths[3:])]
    outcomes = {outcome.path: outcome for outcome in prepare_all(tmp_path / "cache", jobs, workers=2)}
    assert outcomes.keys() == {path for path, _ in jobs}
    assert {path for path, outcome in outcomes.items() if outcome.error} == {gone, deadly, cut}
    assert "signal 9" in str(outcomes[deadly].error) and "does not exist" in str(outcomes[gone].error)
    assert all(outcomes[path].stored == entry_bytes(SPEC) for path in paths)
    again = list(prepare_all(tmp_path / "cache", [(path, SPEC) for path in paths], workers=3))
    assert sorted(again, key=lambda one: one.path) == [Outcome(path) for path in paths]


def test_filling_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    paths = _many(tmp_path / "in", 12)
    jobs = [(path, SPEC) for path in paths]
    started = prepare_all(tmp_path / "cache", jobs, workers=2)
    done = [next(started).path for _ in range(4)]
    started.close()
    outcomes = {outcome.path: outcome.stored for outcome in prepare_all(tmp_path / "cache", jobs, workers=2)}
    assert all(outcomes[path] == 0 for path in done)
    assert outcomes.keys() == set(paths) and sum(stored > 0 for stored in outcomes.values()) >= 6


def _fill(folder: Path, jobs: list[tuple[str, VisionSpec]], queue: object) -> None:
    os.setpgrp()
    for outcome in prepare_all(folder, jobs, workers=2):
        queue.put(outcome.path)  # type: ignore[attr-defined]


def test_filling_survives_kill_9(tmp_path: Path) -> None:
    jobs = [(path, SPEC) for path in _many(tmp_path / "in", 40)]
    queue = FORK.Queue()
    process = FORK.Process(target=_fill, args=(tmp_path / "cache", jobs, queue))
    process.start()
    for _ in range(5):
        queue.get(timeout=60)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    outcomes = list(prepare_all(tmp_path / "cache", jobs, workers=2))
    assert all(outcome.error is None for outcome in outcomes)
    assert sum(outcome.stored == 0 for outcome in outcomes) >= 5
    for path, spec in jobs:
        hit = PreparedStore(tmp_path / "cache").fitted(path, spec, _never)
        assert _same(hit, fit_volume(read_volume(path), spec))


def test_filling_a_full_disk_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "RESERVE", 2**62)
    with pytest.raises(DiskFullError, match="are to stay free"):
        list(prepare_all(tmp_path / "cache", [(path, SPEC) for path in _many(tmp_path / "in", 3)], workers=2))


def test_helpers_leave_when_their_parent_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_PATIENCE", 0.1)
    near, far = FORK.Pipe()
    process = FORK.Process(target=workers._help, args=(far, lambda: print, 1))  # 1: not its parent
    process.start()
    process.join(20)
    assert process.exitcode == 0
    near.close()


# The version of what fills it


def test_the_version_of_fitting_is_raised_when_values_change(tmp_path: Path) -> None:
    """Where this fails, raise `cache.FITTING`, then put the new numbers here: old entries must not be served."""
    path = phantom.write(tmp_path / "a.nii.gz", "LIA")
    specs = [
        VisionSpec(size=(2, 2, 3), channels=1, mean=(0.0,), std=(1.0,), hu_window=(-900.0, 600.0)),
        VisionSpec(size=(2, 2, 3), crop_foreground=0.0, antialias=False, levels="uint8_floor"),
        VisionSpec(size=(2, 2, 3), spacing=(3.0, 2.0, 2.0), fit="crop", percentile_window=(1.0, 99.0)),
    ]
    known = [
        [18426, 19503, 19707, 20466, 20523, 20580, 24835, 25185, 27290, 25708, 25766, 25823],
        [127, 127, 127, 132, 132, 132, 157, 158, 255, 162, 163, 163],
        [2607, 2632, 2658, 3020, 3045, 3070, 3858, 3883, 19038, 4271, 4296, 4322],
    ]
    assert cache.FITTING == 2
    for spec, numbers in zip(specs, known, strict=True):
        values = fit_volume(read_volume(f"{path}#unit=HU"), spec).values.ravel().astype(int)
        np.testing.assert_allclose(values, numbers, atol=1 if spec.levels != "int16" else 3)
