"""Pseudonyms: a secret key turns a patient's id or a UID into a name that only the key's owner can trace back."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import uuid
from pathlib import Path

KEY_BYTES = 32
"""The least length of a key."""

_LENGTH = 16  # characters of a pseudonym, 80 bits: among a million patients two share one with probability 4e-13


def pseudonym(key: bytes, text: str) -> str:
    """Return the 16 characters (a-z, 2-7) that stand for an identifier; outer blanks of `text` do not count.

    The same key and text give the same pseudonym, here and in de-identified files. Without the key neither can the text
    be found again, not even by trying all numbers, nor can two sets of pseudonyms be joined.

    Args:
        key: secret random bytes, see `open_key`.
        text: a patient's id, a UID, a file's name.

    Raises:
        ValueError: the key is too short.
    """
    return base64.b32encode(_digest(key, "id", text)).decode().lower()[:_LENGTH]


def pseudonymous_uid(key: bytes, uid: str) -> str:
    """Return the UID that stands for another, below the root 2.25 of UUIDs (PS3.5 B.2); see `pseudonym`."""
    return f"2.25.{uuid.UUID(bytes=_digest(key, 'uid', uid)[:16], version=4).int}"


def new_key() -> bytes:
    """Return a fresh random key."""
    return secrets.token_bytes(KEY_BYTES)


def open_key(path: str | Path) -> bytes:
    """Return the key that a file holds; where there is no file, make a key and write it there, for its owner only.

    Raises:
        ValueError: the file is shorter than a key, or cannot be read or made.
    """
    path = Path(path)
    try:
        if not path.exists():
            _write(path, new_key())
        key = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: the key cannot be read or made: {error.strerror or error}") from error
    if len(key) < KEY_BYTES:
        raise ValueError(
            f"{path}: a key is a file of {KEY_BYTES} or more random bytes, this one has {len(key)}; "
            "name a file that does not exist yet, and a key is made there"
        )
    return key


def _write(path: Path, key: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())


def _digest(key: bytes, kind: str, text: str) -> bytes:
    if len(key) < KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} or more bytes, got {len(key)}; medmvl.imaging.pseudonym makes them")
    return hmac.new(key, f"{kind}\0{text.strip()}".encode(), hashlib.sha256).digest()
