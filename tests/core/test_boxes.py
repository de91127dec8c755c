"""Box text: the parser reads what the formatter writes, within half a step, and nothing else."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmvl.core.boxes import BOX_FORMATS, BoxFormat, box_format_name


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


@pytest.mark.parametrize(
    ("name", "flat", "deep"),
    [
        ("0-100", "[5, 6, 50, 50]", "[0, 25, 50, 50, 50, 100]"),
        ("0-1000", "[50, 55, 500, 500]", "[0, 250, 500, 500, 500, 1000]"),
        ("0-1", "[0.050, 0.055, 0.500, 0.500]", "[0.000, 0.250, 0.500, 0.500, 0.500, 1.000]"),
        ("absolute", "[10, 22, 100, 200]", "[0, 5, 16, 5, 10, 32]"),
        ("unimed", "{<5><5><50><50>}", "{<0><25><50><50><50><100>}"),
        ("qwen", "<box>(50,55),(500,500)</box>", "<box>(0,250,500),(500,500,1000)</box>"),
        (
            "m3d",
            "<bx_start>[0.055, 0.050, 0.498, 0.495]<bx_end>",
            "<bx_start>[0.500, 0.250, 0.000, 0.969, 0.450, 0.400]<bx_end>",
        ),
    ],
)
def test_named_formats(name: str, flat: str, deep: str) -> None:
    style = BOX_FORMATS[name]
    assert style.format_box((10, 22, 100, 200), (200, 400)) == flat
    assert style.format_box((0, 5, 16, 5, 10, 32), (10, 20, 32)) == deep
    assert len(style.parse_boxes(f"left {flat}, right{flat}\n", (200, 400))) == 2
    assert style.parse_boxes(flat, (10, 20, 32)) == style.parse_boxes(deep, (200, 400)) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unimed", "at { <5> <6><50><60> }"),
        ("qwen", "at (50,60), (500,600)"),
        ("m3d", "at [0.06,0.05,0.595,0.495]"),
        ("0-1", "at [.05, 0.06, 0.5, 0.6] [0.05, 0.06, 0.5, 0.6]"),
        ("absolute", "at [10,12,100,120]"),
    ],
)
def test_boxes_are_read_as_models_write_them(name: str, text: str) -> None:
    assert BOX_FORMATS[name].parse_boxes(text, (200, 200)) == [pytest.approx((10, 12, 100, 120))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unimed", "{<5><6><50>}"),
        ("unimed", "<5><6><50><60>"),
        ("unimed", "{<5><6><50><101>}"),
        ("unimed", "{<5><x><50><60>}"),
        ("unimed", "{<5,6><50><60>>}"),
        ("qwen", "<box>(5,6)</box>"),
        ("qwen", "<box>(500,6),(5,600)</box>"),
        ("qwen", "<box>(5,6),(5,1001)</box>"),
        ("m3d", "<bx_start>[0.5, 0.5, 0.6, 1.2]<bx_end>"),
        ("absolute", "[0, 0, 10, 201]"),
        ("0-1", "[0.2, 0.2, 0.1, 0.3]"),
    ],
)
def test_ill_formed_boxes_are_no_boxes(name: str, text: str) -> None:
    assert BOX_FORMATS[name].parse_boxes(text, (200, 200)) == []


@pytest.mark.parametrize("name", BOX_FORMATS)
@given(text=st.text("[](){}<>,. 0159box/_startend\n", max_size=80), axes=st.sampled_from([(7, 9), (7, 9, 3)]))
def test_garbage_never_crashes(name: str, text: str, axes: tuple[int, ...]) -> None:
    for box in BOX_FORMATS[name].parse_boxes(text, axes):
        assert all(0 <= value <= extent for value, extent in zip(box, axes * 2, strict=True))


def test_parsing_takes_linear_time() -> None:
    for text in ("[" * 200_000, "{<1>" * 50_000, "{" + "<1>" * 60_000, "(1,1)" + " " * 200_000, "(1)," * 40_000):
        for style in BOX_FORMATS.values():
            assert style.parse_boxes(text, (10, 10)) == []


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="'unimed'"):
        box_format_name("uni_med")
    with pytest.raises(ValueError, match="'bracket'"):
        BoxFormat(style="brackets")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decimals"):
        BoxFormat(1, decimals=9)


@given(
    frame=st.lists(st.integers(1, 5000), min_size=2, max_size=3),
    name=st.sampled_from(sorted(BOX_FORMATS)),
    data=st.data(),
)
def test_round_trip_within_half_a_unit(frame: list[int], name: str, data: st.DataObject) -> None:
    ends = [sorted(data.draw(st.tuples(st.floats(0, extent), st.floats(0, extent)))) for extent in frame]
    if name == "m3d":  # its corners are indices: a box spans at least one
        ends = [
            (math.floor(low), min(math.ceil(high) + 1, extent)) for (low, high), extent in zip(ends, frame, strict=True)
        ]
        ends = [(min(low, high - 1), high) for low, high in ends]
    coords = [low for low, _ in ends] + [high for _, high in ends]
    style = BOX_FORMATS[name]
    (read,) = style.parse_boxes(f"It is at {style.format_box(coords, frame)}.", frame)
    for value, got, extent in zip(coords, read, frame * 2, strict=True):
        unit = (1 if style.scale is None else extent / style.scale) / 10**style.decimals
        assert abs(value - got) <= unit * (1 if name == "unimed" else 0.5) * 1.0001
    assert style.format_box(read, frame) == style.format_box(coords, frame)
