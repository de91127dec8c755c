"""Atomic files and folders: whole or not at all."""

import errno
import os
from pathlib import Path

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
