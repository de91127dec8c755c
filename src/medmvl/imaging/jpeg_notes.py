"""What JPEG and JPEG 2000 streams carry beside their pixels: comments, and segments of applications."""

from __future__ import annotations

import re
from collections.abc import Iterator

_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f"
_COMMENT, _COMMENT_2000 = 0xFE, 0x64
_ENDS = (0xDA, 0xD9, 0x90, 0x93)  # start of scan, end of image; start of tile, start of data
_LONE = (0x01, *range(0xD0, 0xD8))  # markers without a length
# What coders write of the pixels themselves: JFIF without a thumbnail, Adobe's and JPEG-LS's colours, a colour profile.
_TECHNICAL = re.compile(rb"JFIF\0.{9}|Adobe.{7}|mrfx.{1,8}|SPIFF\0.{0,32}|ICC_PROFILE\0.*", re.DOTALL)
_CODER = re.compile(rb"(?:Kakadu|Created by|Creator:|JasPer|LEADTOOLS|OpenJPEG)[\w .:()/+-]{0,48}\0?", re.IGNORECASE)


def notes_in(stream: bytes | memoryview) -> Iterator[bytes]:
    """Yield the content of comments and application segments before the first pixels, technical ones left out.

    A stream that is neither JPEG, JPEG-LS nor a JPEG 2000 code stream has none; a damaged one ends where it breaks.

    Args:
        stream: of one picture, from its first byte.
    """
    old = stream[:2] == _JPEG
    if not old and stream[:2] != _JPEG_2000:
        return
    position = 2
    while position + 4 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker in _ENDS:
            return
        if marker == 0xFF or marker in _LONE:  # a filling byte, or a marker alone
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(stream[position + 2 : position + 4], "big")
        content = bytes(stream[position + 4 : position + 2 + length])
        if old and (marker == _COMMENT or 0xE0 <= marker <= 0xEF) and not _TECHNICAL.fullmatch(content):
            yield content
        elif not old and marker == _COMMENT_2000 and not _CODER.fullmatch(content[2:]):
            yield content[2:]  # behind the code of its character set
        position += 2 + length
