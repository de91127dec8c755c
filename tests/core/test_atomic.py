"""Atomic files and folders: whole or not at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medmvl.core.atomic import DiskFullError, atomic_file, atomic_folder


def test_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"
    with atomic_file(target) as file:
        file.write("old")
    with atomic_file(target) as file:
        file.write("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["a.json"]


def test_full_disk_keeps_the_former_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(DiskFullError, match=r"a\.json.*intact"), atomic_file(target) as file:
        file.write("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_folder_swaps_whole_and_survives_failure(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with atomic_folder(target) as folder:
        (folder / "w").write_text("1")
    with pytest.raises(DiskFullError), atomic_folder(target) as folder:
        (folder / "w").write_text("2")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as folder:
        (folder / "w").write_text("3")
        raise KeyboardInterrupt
    assert (target / "w").read_text() == "1"
    with atomic_folder(target) as folder:
        (folder / "v").write_text("4")
    assert sorted(p.name for p in target.iterdir()) == ["v"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle"]


@pytest.mark.parametrize("block", [atomic_file, atomic_folder])
def test_errors_of_the_callers_own_files_are_not_blamed_on_the_disk(tmp_path: Path, block: Callable[..., Any]) -> None:
    target = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"input\.json") as caught, block(target):
        (tmp_path / "input.json").read_text()
    assert not isinstance(caught.value, DiskFullError)
    for error in (PermissionError(errno.EACCES, "denied", "/elsewhere/input"), TimeoutError("server"), OSError("odd")):
        with pytest.raises(type(error)) as caught, block(target):
            raise error
        assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("block", [atomic_file, atomic_folder])
def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path, block: Callable[..., Any]) -> None:
    (tmp_path / "file").write_text("kept")
    for target in (tmp_path / "file" / "out", tmp_path / ("x" * 300)):
        with pytest.raises(DiskFullError, match="could not be written"), block(target):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(DiskFullError, match=r"file: could not be written"), atomic_folder(tmp_path / "file"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    message = r"folder: could not be written \(Is a directory\)"
    with pytest.raises(DiskFullError, match=message), atomic_file(tmp_path / "folder"):
        pass


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "v").write_text("1")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "v").read_text() == "1"
