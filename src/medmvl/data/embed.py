"""Media inside a store: files named by their content, packed beside the samples and unpacked on first use."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medmvl.core.schema import SampleError, split_fragment
from medmvl.data.lines import media_paths
from medmvl.imaging.read import READERS, VOLUME_READERS

Packed = tuple[str, bytes]
"""A file: its address in the store, and what is in it."""

_ADDRESS = re.compile(r"unpacked/[0-9a-f]{2}/[0-9a-f]{40}(?:\.[a-z][a-z0-9]{0,9}){0,2}")
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,9}(?:\.gz)?$")
_OTHER = ".bin"
LARGEST = 2**31 - 2**25
"""Bytes of the media of a sample that can be embedded: what a column of a row group holds, less what waits there."""
_IN_TWO_FILES = (".mhd", ".nhdr", ".hdr", ".img", ".raw")


def pack(path: str, sample_id: str) -> tuple[str, list[Packed]]:
    """Read a medium whole.

    Files of a folder (a DICOM series) lose their names, which may tell whose they are; how they are ordered is in them.
    Of suffixes those stay that choose a reader.

    Args:
        path: absolute; a fragment ("#frame=3") is kept.
        sample_id: for messages.

    Returns:
        Its address, and its files: one, or those of a folder.

    Raises:
        SampleError: it cannot be read, is too large, or is a header whose values lie in another file.
    """
    file, fragment = split_fragment(path)
    try:
        contents = _contents(file)
    except OSError as error:
        raise SampleError(f"cannot be embedded: {error.strerror or error}", sample_id, path) from None
    except ValueError as error:
        raise SampleError(f"cannot be embedded: {error}", sample_id, path) from None
    if os.path.isdir(file):
        name = _folder_address([content for _, content in contents])
        files = [(f"{name}/{number:06d}{suffix}", content) for number, (suffix, content) in enumerate(contents)]
    else:
        name = _file_address(*contents[0])
        files = [(name, contents[0][1])]
    return (f"{name}#{fragment}" if fragment else name), files


def _contents(file: str) -> list[tuple[str, bytes]]:
    """Return (suffix, content) of a file, or of every file in a folder."""
    if not os.path.isdir(file):
        if file.lower().endswith(_IN_TWO_FILES):
            raise ValueError("its values lie in another file beside it; write it as one file, such as .nii.gz or .mha")
        return _read([Path(file)])
    entries = sorted(entry for entry in Path(file).iterdir() if not entry.name.startswith("."))
    if not entries:
        raise ValueError("the folder is empty")
    if any(entry.is_dir() for entry in entries):
        raise ValueError("the folder holds further folders; name the one with the slices")
    return _read(entries)


def _read(files: Sequence[Path]) -> list[tuple[str, bytes]]:
    size = sum(file.stat().st_size for file in files)
    if size > LARGEST:
        raise ValueError(f"it has {size:,} bytes, and {LARGEST:,} are the most; leave it where it is (without --embed)")
    return [(_suffix(file.name), file.read_bytes()) for file in files]


def _suffix(name: str) -> str:
    """Return a suffix that is known, `_OTHER` for one that is not and may be part of a person's name, "" for none."""
    found = _SUFFIX.search(name.lower())
    if found is None:
        return ""
    return found.group() if found.group() in READERS or found.group() in VOLUME_READERS else _OTHER


def _file_address(suffix: str, content: bytes) -> str:
    name = hashlib.sha256(content).hexdigest()[:40]
    return f"unpacked/{name[:2]}/{name}{suffix}"


def _folder_address(contents: Iterable[bytes]) -> str:
    digests = [hashlib.sha256(content).digest() for content in contents]
    name = hashlib.sha256(b"folder" + b"".join(digests)).hexdigest()[:40]
    return f"unpacked/{name[:2]}/{name}"


def addresses(data: Mapping[str, Any]) -> list[str]:
    """Return the addresses of embedded media that a sample (as canonical JSON) shows."""
    paths = [split_fragment(path)[0] for path in media_paths(data)]
    return [path for path in paths if _ADDRESS.fullmatch(path)]


def unpack(folder: Path, files: Iterable[Packed]) -> None:
    """Write media where their addresses say, below `folder`; what is there stays, two processes may do so at once.

    Raises:
        ValueError: an address leads elsewhere, or a content is not what its address says.
        OSError: it cannot be written.
    """
    media: dict[str, dict[str, bytes]] = {}
    for address, content in files:
        name = address if _ADDRESS.fullmatch(address) else address.rpartition("/")[0]
        if not _ADDRESS.fullmatch(name) or address.endswith(("/..", "/.", "/")):
            raise ValueError(f"{address!r} is no address of an embedded medium")
        media.setdefault(name, {})[address] = content
    for name, members in media.items():
        if not (folder / name).exists():
            _write(folder / name, name, members)


def _write(target: Path, name: str, members: Mapping[str, bytes]) -> None:
    """Write a file, or a folder of files, in one move."""
    alone = name in members
    made = _file_address("".join(target.suffixes), members[name]) if alone else _folder_address(members.values())
    if made != name:
        raise ValueError(f"{name}: the embedded content is damaged")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
    try:
        for address, content in members.items():
            (fresh / Path(address).name).write_bytes(content)
        if alone:
            os.replace(fresh / target.name, target)
            return
        fresh.chmod(target.parent.stat().st_mode)
        try:
            os.rename(fresh, target)
        except OSError:
            if not target.is_dir():  # else another process was quicker
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
