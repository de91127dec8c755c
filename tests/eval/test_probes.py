"""Probes: what becomes of a question and its answer in a mirror, in other words, with options in another order."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmvl.core.schema import Sample
from medmvl.eval.answers import parse, reference
from medmvl.eval.controls import NotAsked
from medmvl.eval.probes import Probed, follow, is_consistent, mirrored, options_shuffled, paraphrased
from medmvl.eval.shots import worded
from medmvl.eval.sides import is_unclear, means_both, offers_both, sides, swapped


def sample(question: Any, answer: Any, choices: Sequence[str] = (), kind: str = "image", **meta: Any) -> Sample:
    asked = [{"type": "text", "text": question}] if isinstance(question, str) else question
    messages = [
        {"role": "user", "content": [{"type": kind, "path": "a.png"}, *asked]},
        {"role": "assistant", "content": answer},
    ]
    return Sample.from_dict({"id": "mine", "messages": messages, "meta": {"choices": list(choices), **meta}})


def words(one: Sample) -> str:
    return "".join(part.text for part in one.messages[-1].content if part.type == "text")


def in_a_mirror(one: Sample, kind: str = "text") -> tuple[str, Any]:
    """Return the words and the true answer of the mirrored question."""
    found = mirrored(one, kind, reference(kind, one))
    assert isinstance(found, Probed), found
    assert all(medium.mirrored for medium in found.asked.media) and found.asked.media_key == one.media_key
    assert Sample.from_dict(found.asked.to_dict()) == found.asked
    return words(found.asked), found.expected


def why_not(found: Probed | list[Probed] | NotAsked) -> str:
    assert isinstance(found, NotAsked), found
    return found.reason


# Left and right in words


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("The Left lung, LEFT-sided.", "The Right lung, RIGHT-sided."),
        ("kidney-left and kidney_right, leftward", "kidney-right and kidney_left, rightward"),
        ("a bright lesion; lefty brightly", "a bright lesion; lefty brightly"),
        ("病变在左侧", "病变在右侧"),
    ],
)
def test_sides_are_whole_words(text: str, other: str) -> None:
    assert swapped(text) == other
    assert swapped(other) == text


@given(
    st.text()
    | st.lists(st.sampled_from(["left", "Right", "LEFT", "-", " ", "lung", "左", "ward", "s", "_"])).map("".join)
)
def test_swapping_twice_changes_nothing(text: str) -> None:
    assert swapped(swapped(text)) == text
    assert len(sides(text)) == len(sides(swapped(text)))


@pytest.mark.parametrize(
    "text",
    ["RUL opacity", "R knee", "nodule (L)", "all right", "Is that right?", "It is left, right?", "the right answer"],
)
def test_what_may_mean_a_side_or_none_is_unclear(text: str) -> None:
    assert is_unclear(text)


@pytest.mark.parametrize("text", ["L4 fracture", "L-spine", "T1 image of the left lobe", "Right!", "Level L 5"])
def test_other_words_are_clear(text: str) -> None:
    assert not is_unclear(text)


@pytest.mark.parametrize(
    ("question", "both"),
    [
        ("Is the lesion on the left or right?", True),
        ("Is it in the left lung or the right lung?", True),
        ("Left-sided or right-sided?", True),
        ("left/right?", True),
        ("Left, right, or both?", True),
        ("病变在左肺还是右肺？", True),
        ("Is it the left lung or the right kidney?", False),
        ("Is the left lung larger than the right lung?", False),
        ("Is the left lobe affected?", False),
    ],
)
def test_sides_offered_as_alternatives(question: str, both: bool) -> None:
    assert offers_both(question) is both
    assert offers_both(swapped(question)) is both


@pytest.mark.parametrize("text", ["bilateral effusion", "on both sides", "left and right", "双肺"])
def test_both_sides(text: str) -> None:
    assert means_both(text)
    assert not means_both("left")


# The mirror


@pytest.mark.parametrize(
    ("question", "answer", "choices", "asked", "expected"),
    [
        ("Is the lesion on the left or right?", "left", ["left", "right"], None, "right"),
        ("Which lung is affected?", "Left lung.", [], None, "Right lung."),
        ("Describe this image.", "A lesion in the right lobe.", [], None, "A lesion in the left lobe."),
        ("Is there a lesion in the left lobe?", "yes", ["yes", "no"], "Is there a lesion in the right lobe?", "yes"),
        ("Is it in the left lobe?", "No, the right one.", [], "Is it in the right lobe?", "No, the left one."),
        (
            "Is the left lung larger than the right?",
            "the left",
            [],
            "Is the right lung larger than the left?",
            "the right",
        ),
        ("病变在左侧还是右侧？", "左侧", [], None, "右侧"),
    ],
)
def test_the_answers_side_or_else_the_questions_is_swapped(
    question: str, answer: str, choices: list[str], asked: str | None, expected: str
) -> None:
    one = sample(question, answer, choices)
    assert in_a_mirror(one) == (asked or question, expected)
    assert in_a_mirror(sample(question, answer, choices, kind="volume")) == (asked or question, expected)


LUNGS, MIXED = ("left lung", "heart", "right lung"), ("left lung", "heart", "right kidney")


@pytest.mark.parametrize(
    ("question", "answer", "choices", "asked", "expected", "shown"),
    [
        # Each option's counterpart is there: the question stays, the letter changes.
        ("Which? (A) left lung (B) heart (C) right lung", "(A)", LUNGS, None, "C", LUNGS),
        # It is not: the options change, the letter stays.
        (
            "Which? (A) left lung (B) heart (C) right kidney",
            "(C)",
            MIXED,
            "Which? (A) right lung (B) heart (C) left kidney",
            "C",
            tuple(map(swapped, MIXED)),
        ),
        # The question itself names a side: all of it is swapped, and the letter stays.
        (
            "What lies on the left? (A) left lung (B) heart (C) right lung",
            "A",
            LUNGS,
            "What lies on the right? (A) right lung (B) heart (C) left lung",
            "A",
            tuple(map(swapped, LUNGS)),
        ),
        (
            "What lies on the left? (A) lung (B) spleen",
            "B",
            ("lung", "spleen"),
            "What lies on the right? (A) lung (B) spleen",
            "B",
            ("lung", "spleen"),
        ),
    ],
)
def test_options_with_sides(
    question: str, answer: str, choices: tuple[str, ...], asked: str | None, expected: str, shown: tuple[str, ...]
) -> None:
    one = sample(question, answer, choices)
    assert in_a_mirror(one, "letter") == (asked or question, expected)
    found = mirrored(one, "letter", reference("letter", one))
    assert found.asked.meta.choices == shown


def test_lettered_texts_change_letter_and_words() -> None:
    one = sample("Which? A. left lung B. heart C. right lung", "A. left lung", LUNGS)
    assert in_a_mirror(one)[1] == "C. right lung"
    found = mirrored(one, "text", "A. left lung").asked
    answers = {
        "A": "C",
        "(c)": "(a)",
        "right lung (C)": "left lung (A)",
        "left lung": "right lung",
        "B. heart": "B. heart",
    }
    assert {own: follow("mirrored", "text", one, found, own) for own in answers} == answers


def test_boxes_stay_where_the_file_has_them() -> None:
    boxes = [{"coords": [1, 2, 3, 4]}]
    for question, asked in (("Locate the lesion.", "Locate the lesion."), ("The left lung?", "The right lung?")):
        one = sample(question, [{"type": "box", "box": 0}], boxes=boxes)
        assert in_a_mirror(one, "box") == (asked, (1, 2, 3, 4))
    named = sample([{"type": "text", "text": "Name "}, {"type": "box", "box": 0}], "left lobe", boxes=boxes)
    assert in_a_mirror(named) == ("Name ", "right lobe")
    found = mirrored(named, "text", "left lobe")
    assert found.asked.meta.boxes == named.meta.boxes


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (sample("Is there a lesion?", "yes"), "neither"),
        (sample("Is it left or right?", "neither", ["left", "right", "neither"]), "neither"),
        (sample("Which lungs?", "left and right"), "both"),
        (sample("Which lungs?", "bilateral effusion"), "both"),
        (sample("Which lobe?", "RUL, on the right"), "certainty"),
        (sample("Is that right?", "yes"), "certainty"),
        (sample("Which lobe?", "left lobe", attributes={"plane": "sagittal"}), "front and back"),
        (sample("Which lung?", "left lung", view="LATERAL"), "front and back"),
        (Sample.from_dict({"id": "t", "messages": [{"role": "user", "content": "Left?"}]}), "no picture"),
    ],
)
def test_where_a_mirror_tells_nothing(one: Sample, reason: str) -> None:
    assert reason in why_not(mirrored(one, "text", one.answer or "yes"))


def test_a_volume_has_left_and_right_whatever_plane_is_named() -> None:
    one = sample("Which lobe?", "left lobe", kind="volume", attributes={"plane": "sagittal"})
    assert in_a_mirror(one)[1] == "right lobe"


def test_earlier_turns_are_told_of_the_mirror_too() -> None:
    turns = [("Where is it?", "In the left lobe."), ("Left or right lobe?", "left")]
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    messages[0]["content"] = [{"type": "image", "path": "a.png"}, {"type": "text", "text": turns[0][0]}]
    found = mirrored(Sample.from_dict({"id": "t", "messages": messages}), "text", "left")
    assert [words(found.asked.model_copy(update={"messages": (m,)})) for m in found.asked.messages] == [
        "Where is it?",
        "In the right lobe.",
        "Left or right lobe?",
    ]


@pytest.mark.parametrize("kind", ["text", "letter"])
@given(data=st.data())
def test_mirroring_twice_changes_nothing(kind: str, data: st.DataObject) -> None:
    noun = st.sampled_from(["lung", "lobe", "heart", "left lung", "Right kidney", "right lobe", "left lobe"])
    choices = data.draw(st.lists(noun, min_size=2, max_size=5, unique=True))
    stem = data.draw(st.sampled_from(["Where?", "What is left of it?", "Left or right?", "The right lung?"]))
    listed = " ".join(f"({letter}) {choice}" for letter, choice in zip("ABCDE", choices, strict=False))
    number = data.draw(st.integers(0, len(choices) - 1))
    truth = "ABCDE"[number] if kind == "letter" else choices[number]
    one = sample(f"{stem} {listed}", truth, choices)
    once = mirrored(one, kind, truth)
    if isinstance(once, NotAsked):
        return
    twice = mirrored(once.asked, kind, once.expected)
    assert (twice.asked, twice.expected) == (one.prompt(), truth)
    # What is chosen names the other side, or lies where the question asks for it.
    assert is_consistent("mirrored", kind, one, once.asked, truth, once.expected)
    assert parse(kind, once.expected, once.asked, lambda *_: ()) == once.expected


# Other words


def test_every_template_and_the_data_sets_own_wording() -> None:
    one = sample("Is it bright?", "yes", question_rephrase="Bright?")
    found = paraphrased(one, "text", "yes", ["Tell me: {question}", "{question} Answer briefly."])
    assert [(words(p.asked), p.template, p.expected) for p in found] == [
        ("Is it bright?", "Tell me: {question}", "yes"),
        ("Is it bright?", "{question} Answer briefly.", "yes"),
        ("Bright?", "", "yes"),
    ]
    assert words(worded(found[0].asked, found[0].template)) == "Tell me: Is it bright?"
    assert all(p.asked.media == one.media and len(p.asked.messages) == 1 for p in found)
    assert is_consistent("paraphrased", "text", one, found[0].asked, "Yes.", "yes")
    assert not is_consistent("paraphrased", "text", one, found[0].asked, "Yes.", "no")


def test_no_other_wording_is_no_probe() -> None:
    assert "no other wording" in why_not(paraphrased(sample("Bright?", "yes"), "text", "yes", []))
    same = sample("Bright?", "yes", question_rephrase="bright? ")
    assert "no other wording" in why_not(paraphrased(same, "text", "yes", []))
    boxed = sample(
        [{"type": "text", "text": "Name "}, {"type": "box", "box": 0}], "x", boxes=[{"coords": [0, 0, 1, 1]}]
    )
    boxed = boxed.model_copy(update={"meta": boxed.meta.model_copy(update={"question_rephrase": "What is it?"})})
    assert "no other wording" in why_not(paraphrased(boxed, "text", "x", []))
    with pytest.raises(ValueError, match="once"):
        paraphrased(sample("Bright?", "yes"), "text", "yes", ["Say it."])


# Options in another order

LISTINGS = {
    "(A) cyst (B) tumour, benign (C) none": ("(A) {} (B) {} (C) {}", "BC"),
    "A. cyst B. tumour, benign C. none": ("A. {} B. {} C. {}", "BC"),
    "(a) cyst (b) tumour, benign (c) none": ("(a) {} (b) {} (c) {}", "bc"),
    "\n(A) cyst\n(B) tumour, benign\n(C) none": ("\n(A) {}\n(B) {}\n(C) {}", "BC"),
    "A) cyst, B) Tumour,  benign, or C) none": ("A) {}, B) {}, or C) {}", "BC"),
    "A: cyst; B: tumour, benign; C: none?": ("A: {}; B: {}; C: {}?", "BC"),
}
FINDINGS = ("cyst", "tumour, benign", "none")


@pytest.mark.parametrize("listed", LISTINGS)
def test_listings_are_found_and_written_anew(listed: str) -> None:
    one = sample(f"What is a cyst (A) here? {listed} Choose.", "A", FINDINGS)
    found = options_shuffled(one, "letter", "A")
    assert isinstance(found, Probed)
    shown = [
        ("Tumour,  benign" if "Tumour" in listed else FINDINGS[1]) if c == FINDINGS[1] else c
        for c in found.asked.meta.choices
    ]
    assert words(found.asked) == f"What is a cyst (A) here? {LISTINGS[listed][0].format(*shown)} Choose."
    assert found.asked.meta.choices[ord(found.expected) - ord("A")] == "cyst"
    assert found.expected != "A"


@given(
    st.lists(
        st.from_regex(r"[a-z][a-z,.\-]{0,6}( [a-z]{1,5}){0,2}", fullmatch=True), min_size=2, max_size=8, unique=True
    ),
    st.integers(0, 9),
    st.sampled_from(["({}) ", "{}. ", "{}) "]),
    st.data(),
)
def test_every_option_moves_and_answers_keep_their_words(
    choices: list[str], seed: int, mark: str, data: st.DataObject
) -> None:
    listed = " ".join(mark.format(letter) + choice for letter, choice in zip("ABCDEFGH", choices, strict=False))
    number = data.draw(st.integers(0, len(choices) - 1))
    one, truth = sample(f"Which? {listed}", "ABCDEFGH"[number], choices), "ABCDEFGH"[number]
    found = options_shuffled(one, "letter", truth, seed)
    if len({choice.removesuffix(".").rstrip() for choice in choices}) < len(choices):
        assert "same words" in why_not(found)
        return
    if isinstance(found, NotAsked):
        assert found.reason.startswith(("an option tells", "its question does not list"))
        return
    shuffled = found.asked.meta.choices
    assert sorted(shuffled) == sorted(choices)
    assert not any(a == b for a, b in zip(choices, shuffled, strict=True))
    assert shuffled[ord(found.expected) - ord("A")] == choices[number]
    relisted = " ".join(mark.format(letter) + choice for letter, choice in zip("ABCDEFGH", shuffled, strict=False))
    assert words(found.asked) == f"Which? {relisted}"
    for own, choice in zip("ABCDEFGH", choices, strict=False):
        moved = follow("options_shuffled", "letter", one, found.asked, own)
        assert shuffled[ord(moved) - ord("A")] == choice
        assert is_consistent("options_shuffled", "letter", one, found.asked, own, moved)
        assert not is_consistent("options_shuffled", "letter", one, found.asked, own, own)
    assert options_shuffled(one, "letter", truth, seed) == found


def test_orders_differ_by_sample_and_seed() -> None:
    one = sample("Which? " + " ".join(f"({c}) {c * 3}" for c in "ABCDEFGH"), "A", [c * 3 for c in "ABCDEFGH"])
    others = [one.model_copy(update={"id": str(number)}) for number in range(5)]
    orders = {options_shuffled(other, "letter", "A", seed).asked.meta.choices for other in others for seed in range(5)}
    assert len(orders) == 25


def test_answers_in_words_stay_and_lettered_ones_get_the_new_letter() -> None:
    listed = "Which? (A) left lobe (B) right lobe"
    one = sample(listed, "right lobe", ["left lobe", "right lobe"])
    found = options_shuffled(one, "text", "right lobe")
    assert words(found.asked) == "Which? (A) right lobe (B) left lobe" and found.expected == "right lobe"
    for own, then in {"B. right lobe": "A. right lobe", "(b)": "(a)", "right lobe (B)": "right lobe (A)"}.items():
        assert options_shuffled(one, "text", own).expected == then
    assert is_consistent("options_shuffled", "text", one, found.asked, "B", "right lobe")
    assert not is_consistent("options_shuffled", "text", one, found.asked, "B", "B")


@pytest.mark.parametrize(
    ("one", "truth", "reason"),
    [
        (sample("Bright or dark?", "bright", ["bright", "dark"]), "bright", "does not list"),
        (sample("What?", "bright"), "bright", "no options"),
        (sample("(A) x (B) X", "A", ["x", "X"]), "A", "same words"),
        (sample("(A) cyst (B) none of the above", "A", ["cyst", "none of the above"]), "A", "by their places"),
        (sample("(A) cyst (B) mass (C) A and B", "A", ["cyst", "mass", "A and B"]), "A", "by their places"),
        (sample("(A) cyst (B) mass", "a stone", ["cyst", "mass"]), "a stone", "none of its options"),
    ],
)
def test_where_options_cannot_change_places(one: Sample, truth: str, reason: str) -> None:
    assert reason in why_not(options_shuffled(one, "text", truth))


# What is consistent


def test_consistency_is_with_the_models_own_answer_not_with_the_truth() -> None:
    one = sample("Left or right?", "left", ["left", "right"])
    asked = mirrored(one, "text", "left").asked
    assert is_consistent("mirrored", "text", one, asked, "Right", "left.")
    assert not is_consistent("mirrored", "text", one, asked, "right", "right")
    assert is_consistent("mirrored", "text", one, asked, "unknown", "Unknown")
    assert not is_consistent("mirrored", "text", one, asked, None, "left")
    assert not is_consistent("mirrored", "text", one, asked, "left", None)


def test_boxes_agree_from_half_of_their_union_on() -> None:
    one = sample("Locate it.", [{"type": "box", "box": 0}], boxes=[{"coords": [0, 0, 10, 10]}])
    asked = mirrored(one, "box", (0, 0, 10, 10)).asked
    assert is_consistent("mirrored", "box", one, asked, (20, 0, 30, 10), (20, 0, 30, 20))
    assert not is_consistent("mirrored", "box", one, asked, (20, 0, 30, 10), (20, 0, 30, 21))
    assert not is_consistent("mirrored", "box", one, asked, (20, 0, 30, 10), "left")
