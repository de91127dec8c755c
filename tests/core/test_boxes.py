"""Box text: the parser reads what the formatter writes, within half a step, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmvl.core.boxes import BoxFormat


def test_default_text() -> None:
    assert BoxFormat().format_box((10, 20, 100, 200), (200, 400)) == "[5, 5, 50, 50]"
    assert BoxFormat().format_box((0, 0, 0, 10, 20, 30), (10, 20, 30)) == "[0, 0, 0, 100, 100, 100]"
    assert BoxFormat().parse_boxes("left: [5, 5, 50, 50], right: [0,0,100,100].", (200, 400)) == [
        (10, 20, 100, 200),
        (0, 0, 200, 400),
    ]


@pytest.mark.parametrize(
    "text",
    ["", "5, 5, 50, 50", "[5, 5, 50]", "[5, 5, 50, 150]", "[50, 5, 5, 50]", "[a, b, c, d]", "[-1, 0, 5, 5]", "[[]"],
)
def test_no_box(text: str) -> None:
    assert BoxFormat().parse_boxes(text, (10, 10)) == []


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="coordinates"):
        BoxFormat().format_box((0, 0, 1, 1), (10, 10, 10))
    with pytest.raises(ValueError, match="size"):
        BoxFormat().parse_boxes("[0, 0, 1, 1]", (0, 10))
    with pytest.raises(ValueError, match="scale"):
        BoxFormat(scale=0)


@given(
    frame=st.lists(st.integers(1, 5000), min_size=2, max_size=3),
    scale=st.sampled_from([100, 1000]),
    data=st.data(),
)
def test_round_trip_within_half_a_step(frame: list[int], scale: int, data: st.DataObject) -> None:
    ends = [sorted(data.draw(st.tuples(st.floats(0, extent), st.floats(0, extent)))) for extent in frame]
    coords = [low for low, _ in ends] + [high for _, high in ends]
    style = BoxFormat(scale)
    (read,) = style.parse_boxes(f"It is at {style.format_box(coords, frame)}.", frame)
    for value, got, extent in zip(coords, read, frame * 2, strict=True):
        assert abs(value - got) <= extent / scale / 2 * 1.0001
    assert style.format_box(read, frame) == style.format_box(coords, frame)
