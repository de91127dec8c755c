"""Boxes with names, asked about in both directions: where is it (REC), and what is it (REG)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from medmvl.core.schema import Box, Sample
from medmvl.data.adapters.base import Adapter, Media
from medmvl.data.questions import draw


def regions(
    reader: Adapter, key: str, split: str, tasks: Collection[str], medium: Media, box: Box, pools: str, **meta: Any
) -> Iterator[Sample]:
    """Yield those of the two samples of a box whose tasks are wanted.

    Args:
        reader: whose samples they become.
        key: of the box; their ids are "rec-KEY" and "reg-KEY".
        split: a key of the adapter's splits.
        tasks: "rec": the question names what is looked for, the answer is the box; "reg": the other way round.
        medium: that the box lies on.
        box: with its label, the name.
        pools: beginning of the names of two pools of questions, such as "uni_med" for "uni_med_rec" and "uni_med_reg";
            "{}" in them is the name, or the box.
        meta: further things to keep.
    """
    name = box.label or ""
    if "rec" in tasks:
        asked = draw(f"{pools}_rec", key, split).replace("{}", name)
        yield reader.sample(f"rec-{key}", split, "rec", asked, (0,), [medium], [box], **meta)
    if "reg" in tasks:
        before, _, after = draw(f"{pools}_reg", key, split).partition("{}")
        words = tuple(piece for piece in (before, 0, after) if piece != "")
        yield reader.sample(f"reg-{key}", split, "reg", words, name, [medium], [box], answer_type="open", **meta)


def corners(box: Any) -> tuple[float, ...]:
    """Return (x0, y0, x1, y1), upper corner exclusive, of [x, y, width, height] in pixels.

    Raises:
        ValueError: other than four numbers, a negative place, or an empty box.
    """
    numbers = isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)
    if not numbers or min(box[:2]) < 0 or min(box[2:]) <= 0:
        raise ValueError(f"a box is [x, y, width, height] in pixels, got {box!r:.80}")
    x, y, width, height = box
    return (x, y, x + width, y + height)
