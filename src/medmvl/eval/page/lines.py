"""Files of JSON lines, read one line at a time, and texts of any length, shortened."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the object of every line that is not blank.

    Raises:
        ValueError: a line is no JSON object; says which.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not valid JSON: {error}") from None
            if not isinstance(found, dict):
                raise ValueError(f"{path}:{number}: not a JSON object but {type(found).__name__}")
            yield found


def cut(text: str, most: int) -> str:
    """Return a text, shortened if it is too long to be shown."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters in all)"
