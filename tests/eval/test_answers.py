"""Reading answers: letters, boxes, plain text."""

import pytest

from medmvl.core.schema import Sample, SampleError
from medmvl.eval.answers import letter, parse, reference

OPTIONS = ("left frontal lobe", "right frontal lobe", "cerebellum")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(B)", "B"),
        ("B", "B"),
        ("b.", "B"),
        ("B) right frontal lobe", "B"),
        ("B: right", "B"),
        ("Right frontal lobe.", "B"),  # the option's own words
        ("(D)", None),  # no such option
        ("A lesion in the lobe", None),  # an article is no letter
        ("right frontal lobe (B)", "B"),
        ("right frontal lobe (A)", None),  # words and letter contradict each other
        ("It is (B)", None),  # strict: the letter comes first, or behind its own words
        ("frontal lobe", None),
        ("", None),
    ],
)
def test_letter(text: str, found: str | None) -> None:
    assert letter(text, OPTIONS) == found


def test_an_option_that_begins_like_a_letter() -> None:
    germs = ("S. aureus", "C. difficile", "E. coli", "hepatitis (B)")
    assert [letter(germ, germs) for germ in germs] == ["A", "B", "C", "D"]
    assert letter("C", germs) == "C" and letter("E", germs) is None
    assert letter("b.", ("b", "a")) == "B"  # a letter alone is always the option's


def test_letter_without_known_options() -> None:
    assert letter("(H)") == "H"
    assert letter("heart") is None
    assert letter("same", ("same", "Same")) is None  # two options, one text: no telling which


def test_parse_and_reference() -> None:
    turns = [
        {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "Where?"}]},
        {"role": "assistant", "content": [{"type": "box", "box": 0}]},
    ]
    sample = Sample.from_dict({"id": "s", "messages": turns, "meta": {"boxes": [{"coords": [1, 2, 3, 4]}]}})
    assert reference("box", sample) == (1, 2, 3, 4)
    found = [(5.0, 6.0, 7.0, 8.0), (0.0, 0.0, 1.0, 1.0)]
    assert parse("box", "[..] [..]", sample, lambda text, asked: found) == (5, 6, 7, 8)
    assert parse("box", "nowhere", sample, lambda text, asked: []) is None
    assert parse("text", "  left\n", sample, lambda text, asked: []) == "left"
    assert parse("text", " \n", sample, lambda text, asked: []) is None
    for kind in ("text", "letter"):
        with pytest.raises(SampleError, match=r"sample 's'.*no true answer of kind"):
            reference(kind, sample)
