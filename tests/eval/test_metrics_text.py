"""Text metrics by hand, and what must hold for every one of them."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmvl.eval.metrics.metric import Answers, Mean
from medmvl.eval.metrics.ngrams import count
from medmvl.eval.metrics.ptb import words_ptb
from medmvl.eval.metrics.rouge import lcs
from medmvl.eval.metrics.table import METRICS, is_unbounded, measure
from medmvl.eval.metrics.text import first_words, normalise_vqa

ROOMS = ("accuracy", "overlap", "bleu", "rouge", "meteor", "cider", "chrf", "captions")
EVERY = [name for name, where in METRICS.items() if where.split(":")[0].rsplit(".", 1)[1] in ROOMS]
NAMES = [name for name in EVERY if name not in ("meteor_wordnet", "meteor_hf")]  # need data; in the golden tests
DEPEND_ON_ALL = ("cider", "cider_ctchat")  # document frequencies are those of all references


def scores(predictions: list, references: list, names: list[str] | None = None) -> dict[str, float]:
    found, missing = measure(names or NAMES, Answers(predictions, references))
    assert not missing
    return {name: float(one.scores(np.ones((1, len(references))))[0]) for name, one in found.items()}


def score(name: str, prediction: str | None, reference: str) -> float:
    return scores([prediction], [reference], [name])[name]


@pytest.mark.parametrize(
    ("name", "prediction", "reference", "value"),
    [
        ("accuracy_normalised", "The Left Lung.", "left lung", 1),
        ("accuracy_normalised", "two", "2", 1),
        ("accuracy_normalised", "left lungs", "left lung", 0),
        ("accuracy_substring_unimed", "it is the left lung", "Lung", 1),
        ("accuracy_substring_unimed", "abnormal", "normal", 1),  # upward biased
        ("accuracy_substring_unimed", "", "no", 0),
        ("accuracy_yesno_strict", "No, it is not.", "no", 1),
        ("accuracy_yesno_strict", "Yes there is no lesion", "no", 0),
        ("accuracy_yesno_strict", "normal", "no", 0),
        ("accuracy_yesno_strict", "left", "left", 0),  # for yes and no only
        ("accuracy_yesno_llavamed", "normal", "no", 1),  # an "no" in "normal"
        ("accuracy_yesno_llavamed", "yes and no", "no", 1),
        ("accuracy_yesno_llavamed", "yes and no", "yes", 1),
        ("accuracy_yesno_llavamed", "left", "left", 0),
        ("accuracy_yesno_llavamed", None, "yes", 0),
        ("accuracy_yesno_medevalkit", "Yes.", "yes", 1),
        ("accuracy_yesno_medevalkit", "yes and no", "yes", 0),  # not exactly one
        ("accuracy_yesno_medevalkit", "Yes? No. The answer is: yes", "yes", 1),
        ("accuracy_yesno_medevalkit", "no \\boxed{\\text{yes}}", "yes", 1),
        ("accuracy_yesno_medevalkit", "no \\boxed{yes", "no", 0),  # an open box holds "None"
        ("accuracy_yesno_medevalkit", "<think>no</think><answer>yes</answer>", "yes", 1),
        ("accuracy_yesno_medevalkit", "Final answer: Yes", "Yes", 1),
        ("accuracy_yesno_medevalkit", None, "yes", 0),
        ("accuracy_letter_ctrate", "The answer is (b).", "(b) Pleural effusion", 1),
        ("accuracy_letter_ctrate", "(a) (b) (c) (d)", "(b) Pleural effusion", 1),  # all options: right
        ("accuracy_letter_ctrate", "b", "(b) Pleural effusion", 0),
        ("accuracy_letter_ctrate", "Pleural effusion", "Pleural effusion", 0),  # no letter to look for
        ("accuracy_letter_m3d", "B. liver", "B. liver", 1),
        ("accuracy_letter_m3d", "it lies in area A.", "A", 1),
        ("accuracy_letter_m3d", "B", "B", 0),
        ("accuracy_letter_m3d", "b. liver", "B. liver", 0),
        ("accuracy_closed_multimedeval", "it is not", "no", 1),
        ("accuracy_closed_multimedeval", "yes and no", "yes", 1),
        ("accuracy_closed_multimedeval", "cannot say", "yes", 0),
        ("accuracy_open_multimedeval", "right upper lobe", "right upper lung lobe", 1),  # 3 of 4 words
        ("accuracy_open_multimedeval", "upper lobe", "right upper lung lobe", 0),
        ("token_f1", "a small bright lesion", "small dark lesion", 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),
        ("token_f1", "left left left", "left", 2 * (1 / 3) * 1 / (1 / 3 + 1)),  # repeats do not pay
        ("token_f1", "Left, lobe!", "left lobe", 1),
        ("token_precision", "left left left", "left", 1 / 3),
        ("token_recall", "left left left", "left left", 1),
        ("token_recall", "left", "left lobe", 1 / 2),
        ("token_precision_llavamed", "left left left right", "left", 3 / 4),  # repeats pay
        ("token_recall_llavamed", "left left left", "left lobe", 3 / 4),
        ("token_f1_unimed", "left left left", "left lobe", 2 * 1 * (3 / 4) / (1 + 3 / 4)),
        ("token_exact_llavamed", "left left lobe", "left lobe", 2 / 3),
        ("token_recall_multimedeval", "left left", "left lobe", 1 / 2),
        ("bleu1_sentence", "left lung", "left lower lung", np.exp(1 - 3 / 2)),
        ("bleu2_sentence", "left lower lobe", "left lower lung", np.sqrt(2 / 3 * 1 / 2)),
        ("bleu2_sentence", "lung", "lung", 0),  # one word has no pair of words: short answers score 0
        ("bleu2_onehot", "left lower lobe", "left lower lung", 1 / 2),
        ("bleu1_hf", "Left lung .", "left lung.", 2 / 3),  # case counts, marks are words
        ("bleu1_corpus", "Left (small) lung", "left small lung", 3 / 5),  # brackets are words
        ("bleu1_ctchat", "lung.", "lung", 0),
        ("rouge1", "left left lung", "left lung", 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("rouge2", "the left lung", "left lung", 2 * (1 / 2) * 1 / (1 / 2 + 1)),
        ("rouge_l", "lung left", "left lung", 1 / 2),
        ("rouge_l_coco", "left lung", "left lower lung", (1 + 1.44) * 1 * (2 / 3) / (2 / 3 + 1.44 * 1)),
        ("rouge1_pkg", "left left left", "left", 1),  # sets
        ("rouge_l_pkg", "a b. c d", "c d. a b", 1),  # sentences in another order
        ("meteor_stem", "two lesions", "two lesion", 1 - 0.5 * (1 / 2) ** 3),
        ("meteor_stem", "lesion two", "two lesion", 1 - 0.5),
        ("meteor_stem", "right", "left", 0),
        ("chrf_sentence", "abc", "abd", np.mean([2 / 3, 1 / 2, 0])),
        ("chrf_sentence", "", "abd", 0),
    ],
)
def test_by_hand(name: str, prediction: str | None, reference: str, value: float) -> None:
    assert score(name, prediction, reference) == pytest.approx(value, abs=1e-6)


def test_cider_by_hand() -> None:
    # Two references share the word "lung" alone, which therefore weighs nothing.
    values = measure(["cider"], Answers(["lung clear", "lung"], ["lung clear", "lung mass"]))[0]["cider"].values
    assert values is not None
    assert values.tolist() == pytest.approx([10 * 2 / 4, 0])
    assert score("cider", "lung clear", "lung clear") == 0  # one pair alone: every word is in all references


def test_questions_that_do_not_count() -> None:
    predictions, references = ["yes", "no", "left", "maybe"], ["yes", "yes", "left lobe", "no"]
    found = scores(predictions, references)
    assert found["accuracy_closed_multimedeval"] == pytest.approx(1 / 3)
    assert found["accuracy_open_multimedeval"] == 0
    # LLaVA-Med's script: the wrong "no" is left out; the two without yes or no are wrong.
    assert found["accuracy_yesno_llavamed_printed"] == pytest.approx(1 / 3)
    assert found["accuracy_yesno_llavamed"] == pytest.approx(1 / 4)
    assert score("accuracy_open_multimedeval", "yes", "yes") == 0  # nothing counts


def test_unimed_captions_cut_references_and_drop_the_silent() -> None:
    long = " ".join(f"word{number}" for number in range(60))
    assert first_words(" a  b\tc \n") == "a b\tc"  # a tab alone is no blank
    assert len(first_words(long).split()) == 50
    found = scores(["word1 word2", "", None, "word0"], ["word1 word2", "word3", "word4", long])
    assert found["rouge1_caption_unimed"] == pytest.approx((1 + 2 * (1 / 50) / (1 + 1 / 50)) / 2, abs=1e-6)
    assert found["token_f1_caption_unimed"] == pytest.approx((1 + 2 * (1 / 50) / (1 + 1 / 50)) / 2)
    assert found["rouge1_pkg"] == pytest.approx((1 + 2 * (1 / 60) / (1 + 1 / 60)) / 4, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "normalised"),  # what the original functions return
    [
        ("The left lung.", "left lung"),
        ("Left, right", "left right"),
        ("x-ray (PA)", "x ray pa"),
        ("1,000 mm - 2", "1000 mm 2"),
        ("No, there isnt.", "no there isn't"),
        ("None", "0"),
        ("ten lesions and a mass", "10 lesions and mass"),
        ("MRI/CT", "mri ct"),
        ("3.5 cm. The end.", "3.5 cm end"),
        ("...", ""),
        ("a.b", "ab"),
        ("Youre right; theyd've gone", "you're right they'd've gone"),
        ("shouldntve it's", "shouldntve it's"),
        ("e.g. 5 . 6", "eg 5 6"),
        ("one\ttwo\nthree", "1 2 3"),
        ("[a] {the} <an>", ""),
        ("A. " * 40 + "end", "a. " * 8 + "end"),  # stops after 32 periods
    ],
)
def test_normalise_vqa(text: str, normalised: str) -> None:
    assert normalise_vqa(text) == normalised


TOKENS = ["no", "ct.", "the", "mass", "ca", "n't", "be", "seen", "-lrb-", "suv", "4.2", "-rrb-"]


def test_what_penn_treebank_tokens_do_to_reports() -> None:
    assert words_ptb("No CT. The mass can't be seen (SUV 4.2).") == TOKENS
    assert words_ptb("") == words_ptb(" . ; - ") == []


@given(st.lists(st.tuples(st.text("ab", max_size=9), st.text("ab", max_size=9)), max_size=6), st.integers(1, 4))
def test_counts_by_plain_loops(pairs: list[tuple[str, str]], order: int) -> None:
    *_, table = count([p for p, _ in pairs], [r for _, r in pairs], order)
    expected = set()
    for place, sides in enumerate(pairs):
        given, wanted = ([text[i : i + order] for i in range(len(text) - order + 1)] for text in sides)
        expected |= {(place, gram, given.count(gram), wanted.count(gram)) for gram in {*given, *wanted}}
    rows = zip(table.pair.tolist(), table.gram.tolist(), table.given.tolist(), table.wanted.tolist(), strict=True)
    rows = list(rows)
    assert sorted((pair, *counts) for pair, _, *counts in rows) == sorted(
        (pair, *counts) for pair, _, *counts in expected
    )
    assert len({gram for _, gram, *_ in rows}) == len({gram for _, gram, *_ in expected})


def test_counts_of_more_words_than_numbers_can_be_packed_for() -> None:
    texts = [[f"w{pair}_{place}" for place in range(40)] for pair in range(2000)]
    for order, table in enumerate(count(texts, texts, 6), start=1):
        assert (table.shared() == 41 - order).all()
        assert len(np.unique(table.gram)) == len(table.gram) == 2000 * (41 - order)


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_longest_common_subsequence(a: str, b: str) -> None:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    assert lcs(a, b) == table[-1, -1]


words = st.sampled_from(["left", "Right", "the", "lesion.", "(b)", "yes", "no,", "none", "3.5", "lobe", "A.", "-", "é"])
texts = st.one_of(st.lists(words, max_size=12).map(" ".join), st.text(max_size=30))
answers = st.lists(st.tuples(texts, texts), min_size=1, max_size=6)


@given(answers)
@settings(max_examples=60, deadline=None)
def test_in_range_and_alone(pairs: list[tuple[str, str]]) -> None:
    found, _ = measure(NAMES, Answers([p for p, _ in pairs], [r for _, r in pairs]))
    for name, statistics in found.items():
        top = 10 if is_unbounded(name) else 1
        score = statistics.scores(np.ones((1, len(pairs))))
        assert statistics.values is not None and statistics.values.shape == (len(pairs),), name
        assert ((score >= 0) & (score <= top + 1e-9)).all(), name
        assert ((statistics.values >= 0) & (statistics.values <= top + 1e-9)).all(), name
        if isinstance(statistics, Mean):
            assert score[0] == pytest.approx(statistics.values.mean()), name


@given(answers, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_a_resample_is_the_score_of_the_samples_it_holds(pairs: list[tuple[str, str]], draw) -> None:
    weights = [draw.randint(0, 3) for _ in pairs]
    weights[draw.randrange(len(pairs))] += 1
    held = [pair for pair, weight in zip(pairs, weights, strict=True) for _ in range(weight)]
    draw.shuffle(held)  # nor does the order matter
    names = [name for name in NAMES if name not in DEPEND_ON_ALL]
    whole, _ = measure(names, Answers([p for p, _ in pairs], [r for _, r in pairs]))
    part = scores([p for p, _ in held], [r for _, r in held], names)
    for name in names:
        assert whole[name].scores(np.array([weights], float))[0] == pytest.approx(part[name], abs=1e-9), name


@given(st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_order_does_not_matter_to_what_depends_on_all(order: list[int]) -> None:
    predictions = ["left lung", "lung mass", "no mass in lung", "", "clear"]
    references = ["left lung clear", "mass", "no mass", "lung", "clear lung"]
    plain, shuffled = (
        measure(DEPEND_ON_ALL, Answers([predictions[i] for i in places], [references[i] for i in places]))[0]
        for places in (range(5), order)
    )
    for name in DEPEND_ON_ALL:
        assert shuffled[name].values == pytest.approx(plain[name].values[order])


plain = st.lists(st.sampled_from(["left", "right", "lesion", "lobe", "lung", "clear", "small"]), min_size=4, max_size=9)


@given(st.lists(plain, min_size=3, max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_reference_itself_scores_best(lists: list[list[str]]) -> None:
    # A word of its own in each text, so that every n-gram order has one that is rare.
    texts = [" ".join([*words, f"x{place}", *words]) for place, words in enumerate(lists)]
    for name, value in scores(texts, texts).items():
        if any(part in name for part in ("letter", "yesno", "closed", "exact")):
            continue  # these ask for an option, for yes or no, or (LLaVA-Med) count repeats against the answer
        if name == "meteor_stem":
            value += np.mean([0.5 / len(text.split()) ** 3 for text in texts])  # one chunk of all words
        assert value == pytest.approx(10 if is_unbounded(name) else 1, abs=1e-6), name


def test_nobody_and_nothing() -> None:
    assert all(value == 0 for name, value in scores([None, ""], ["lung", "clear lobe"]).items())
    found, _ = measure(NAMES, Answers([], []))
    assert found.keys() == set(NAMES)


def test_the_documentation_has_every_text_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in EVERY:
        between = re.sub(r"[234]", "1", name), re.sub(r"[123]", "4", name)  # `bleu1_x` ... `bleu4_x`
        assert f"`{name}`" in page or f"`{between[0]}` ... `{between[1]}`" in page, name
