"""An audit on disk: audit.json for programs, and audit.html, one page with pictures that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image as PIL

from medmvl.core.atomic import atomic_file
from medmvl.data.audit.findings import KINDS, SEVERITIES, Example, Finding, reason
from medmvl.data.audit.media import picture_of
from medmvl.data.audit.run import Audit
from medmvl.imaging.read import read_image

JSON, HTML = "audit.json", "audit.html"
_PAGE = Path(__file__).parent / "page"
_PIXELS = 200  # longest side of a picture
_PICTURED = ("leak_file", "leak_near")


def write_audit(result: Audit, folder: str | Path) -> tuple[Path, Path]:
    """Write both files; return their paths.

    The page opens no connection and runs no script; all text of data is escaped.

    Raises:
        DiskFullError: they could not be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(folder)
    with atomic_file(folder / JSON) as file:
        json.dump(result.to_dict(), file, indent=1, ensure_ascii=False)
    page = Environment(loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = page.get_template("audit.html.jinja").render(
        audit=result,
        groups=[(severity, _cards(result, severity)) for severity in SEVERITIES],
        counts={
            severity: sum(KINDS[one.kind].severity == severity for one in result.findings) for severity in SEVERITIES
        },
        total={key: sum(split[key] for split in result.splits) for key in ("samples", "media")},
        style=(_PAGE / "audit.css").read_text(encoding="utf-8"),
    )
    with atomic_file(folder / HTML) as file:
        file.write(text)
    return folder / JSON, folder / HTML


def _cards(result: Audit, severity: str) -> list[dict[str, Any]]:
    names = result.settings["names"] == "all"
    return [_card(finding, names) for finding in result.findings if KINDS[finding.kind].severity == severity]


def _card(finding: Finding, names: bool) -> dict[str, Any]:
    pictured = finding.kind in _PICTURED
    pictures = [
        [_picture(one, names) for one in (example, example.other) if pictured and one and one.address]
        for example in finding.examples
    ]
    return {
        "finding": finding,
        "kind": KINDS[finding.kind],
        "rows": [{"example": e, "pictures": p} for e, p in zip(finding.examples, pictures, strict=True)],
        "pictured": any(pictures),
        "columns": [
            name
            for name in ("other", "place", "path", "detail", "text")
            if any(getattr(e, name) for e in finding.examples)
        ],
    }


def _picture(example: Example, names: bool) -> dict[str, str]:
    """Return the sample's picture (of a volume the middle slice) as "data" address, or the "error" of its file."""
    caption = f"{example.title}: {example.id}" if example.id else example.title
    try:
        picture = PIL.fromarray(picture_of(read_image(example.address)))
    except (ValueError, OSError) as error:
        return {"caption": caption, "error": str(error) if names else reason(str(error))}
    picture.thumbnail((_PIXELS, _PIXELS))
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return {"caption": caption, "data": f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"}
