"""Files and folders that appear whole or not at all, whatever stops the process in between."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What a failing disk says to a writer; a caller that cannot find or open a file of its own meets other numbers.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# What forbids writing in one place; it counts only where that place is the target.
_PLACE = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


class DiskFullError(OSError, ValueError):
    """Writing failed for want of space (or another operating-system reason); what was there before is untouched."""


class BusyError(ValueError):
    """Another process writes to the same folder."""


@contextmanager
def atomic_file(path: str | Path, mode: str = "w") -> Iterator[object]:
    """Open a file beside `path` for writing; on a clean exit it is synced to disk and takes the place of `path`.

    Args:
        path: the file to create or replace; its folder is created.
        mode: "w" (UTF-8 text) or "wb".

    Raises:
        DiskFullError: the write failed; `path` keeps its former content and no temporary file stays. Other errors of
            the block under `with`, such as a missing input, pass as they are, with the same effect on the files.
    """
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Fill a folder beside `path`; on a clean exit every file is synced and the folder takes the place of `path`.

    A former folder at `path` is moved aside first and deleted last, so at every moment either the old or the new
    content exists on disk.

    Args:
        path: the folder to create or replace; what a symlink leads to is replaced, the link stays.

    Raises:
        DiskFullError: the write failed; the former folder is back in its place. Other errors of the block under
            `with`, such as a missing input, pass as they are, with the same effect on the folders.
    """
    path = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield fresh
            for file in fresh.rglob("*"):
                if file.is_file():
                    _sync(file)
            os.chmod(fresh, 0o777 & ~_umask())
            _swap(fresh, path)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        _sync(path.parent)


def _swap(fresh: Path, path: Path) -> None:
    if not path.exists():
        os.replace(fresh, path)
        return
    former = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    try:
        os.replace(path, former)
        try:
            os.replace(fresh, path)
        except OSError:
            os.replace(former, path)
            raise
    finally:
        shutil.rmtree(former, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into a DiskFullError; every other error passes."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFullError) or not _is_of_writing(error, path):
            raise
        where = next(folder for folder in path.absolute().parents if folder.exists())
        free = shutil.disk_usage(where).free / 2**20
        raise DiskFullError(
            f"{path}: could not be written ({error.strerror}); {free:,.0f} MiB are free there. "
            "What was saved before is intact: free some space (or choose another output folder) and run again."
        ) from error


def _is_of_writing(error: OSError, path: Path) -> bool:
    """Say whether the disk failed, or the place of `path` (itself, a folder above it, what is new beside it)."""
    if error.errno in _DISK:
        return True
    if error.errno not in _PLACE or not isinstance(error.filename, str | os.PathLike):
        return False
    failed, target = Path(error.filename).absolute(), path.absolute()
    return failed in (target, *target.parents) or str(failed).startswith(str(target.parent / f".{target.name}."))


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Keep a folder to this process while it writes there; the lock ends with the process.

    The folder is created, and removed again if nothing came into it.

    Raises:
        BusyError: another process holds it.
    """
    import fcntl

    folder = Path(folder)
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BusyError(f"{folder}: another process is writing there; wait for it, or choose another folder") from error
    except OSError:
        pass  # a network disk without locks
    try:
        yield
    finally:
        os.close(handle)
        with suppress(OSError):  # it is not empty
            folder.rmdir()
