"""What the report shows of scores and answers: every section, hostile text in every field, many tasks, many answers."""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from medmvl.eval.metrics.metric import Answers
from medmvl.eval.metrics.table import measure
from medmvl.eval.report import survey, write_report
from medmvl.eval.table import print_table
from report_files import CONDITIONS, entry, interval, record, write_run, wrong

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&{{7*7}}</style></textarea>"
VOID = {"meta", "br", "img", "input", "hr", "link", "col"}


class Page(HTMLParser):
    """A page's tags with their attributes, in order, and its text; checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(word for word in self.words if word)

    def of(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        return [
            attributes for found, attributes in self.tags if found == tag and name in (attributes.get("class") or "")
        ]


def shown(folder: Path, **options: Any) -> Page:
    return Page(write_report(folder, **options).read_text())


def hostile(tmp_path: Path, said: str) -> Page:
    """Return the page of an evaluation in which every text that data, model or user wrote contains `said`."""
    picture = tmp_path / "whole.png"
    PillowImage.new("L", (40, 30), 99).save(picture)
    name = f"set{said}/side{said}"
    probes = {key: {"n": 2, "consistency": interval(0.5), "metrics": {}} for key in ("mirrored", said)}
    groups = {said: {value + said: {"n": 2, "metrics": {"accuracy_strict": interval(0.5)}} for value in "ab"}}
    metrics = {"accuracy_strict": 0.75, said: 0.5}
    task = entry(
        8, metrics, title=f"title {said}", probes=probes, groups=groups,
        unavailable={f"green {said}": f"reason {said}"}, metric_options={said: {said: said}},
        not_applicable={said: {said: 3}},
    )  # fmt: skip
    told = dict.fromkeys(("answer_type", "modality", "question", "prompt", "answer", "patient"), said)
    boxed = {"question_boxes": [[1, 2, 9, 9]], "likelihoods": {f"left {said[:30]}": -0.1, f"right {said[:30]}": -2.0}}
    made = []
    for number in range(8):
        label = f"{('left', 'right')[number % 2]} {said[:30]}"  # longer ones have no place in a matrix
        given = {"parsed": f"right {said[:30]}", "reference": label, "scores": {"accuracy_strict": float(number % 2)}}
        media = [str(picture if number < 6 else tmp_path / f"missing {said}.png"[:200].replace("/", "_"))]
        about = {"id": f"s{number} {said}", "task": name, "media": media}
        made.append(record(number, **told | boxed | given | about))
        for control in ("blank_image", "paraphrased"):
            made.append(record(number, **told | about | {"control": control, "consistent": False}))
    lost = [
        {"id": said, "task": task, "control": control, "reason": said} for task, control in ((name, ""), (said, said))
    ]
    data = [{"name": said, "version": said, "licence": said, "description": said}]
    folder = write_run(
        tmp_path,
        {name: task},
        made,
        lost,
        model=said,
        model_hash=said,
        data_hash=said,
        versions={said: said},
        data=data,
    )
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"stage": said, "step": i, "loss": 1.0}) + "\n" for i in range(3)))
    return shown(folder, logs=[log])


def test_hostile_text_changes_nothing_but_text(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain, evil = hostile(tmp_path / "a", "plain"), hostile(tmp_path / "b", EVIL)
    # The order of cards is drawn by names; what there is, is the same.
    counts = [Counter((tag, *sorted(attributes)) for tag, attributes in page.tags) for page in (plain, evil)]
    assert counts[0] == counts[1] and counts[0].total() > 400
    assert sum(tag == "script" for tag, _ in evil.tags) == 1 == sum(tag == "style" for tag, _ in evil.tags)
    assert not any(name.startswith("on") or name == "style" for _, attributes in evil.tags for name in attributes)
    assert evil.text.count("<script>alert") > 40 and "49" not in evil.text.split(EVIL[:10])[0]
    for piece in ("missing", "reason", "left", "title", "green"):
        assert f"{piece} {EVIL[:15]}" in evil.text, piece


def test_only_the_pages_own_script_and_style_may_run(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path, {"set/side": entry()}, [record(0), wrong(1)])).read_text()
    (policy,) = (a["content"] or "" for a in Page(text).of("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for kind in ("script", "style"):
        (inside,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.search(r"""(src|href|url|action)\s*[=(]\s*["']?(https?:)?//""", text)


def test_scores_stand_beside_all_controls_each_in_its_unit(tmp_path: Path) -> None:
    metrics = {"accuracy_strict": 0.75, "cider": 3.2, "log_loss": 0.4}
    task = entry(
        8, metrics, unavailable={"green": "the model has to be on this disk"}, metric_options={"cider": {"n": 4}}
    )
    failed = entry(8, {}, title="Reports", unavailable={"accuracy_strict": "its package is missing"})
    unasked = entry(0, {}, title="Nobody")
    page = shown(write_run(tmp_path, {"set/side": task, "set/report": failed, "set/none": unasked}, [record(0)]))
    for words in (
        "75.0 %", "70.0 – 80.0", "3.20", "3.15 – 3.25", "log_loss ↓", "0.400", "0.350 – 0.450",
        "2 more metrics, 1 not computed", "green the model has to be on this disk", "its package is missing",
        "no question could be asked", '{"cider": {"n": 4}}',
    ):  # fmt: skip
        assert words in page.text, words
    for control in CONDITIONS:
        assert len(page.of("td", control)) == 3  # one for each metric
        assert (
            len([mark for tag in ("path", "circle") for mark in page.of(tag, f"mark {control}")]) == 4
        )  # and a legend


@pytest.mark.parametrize(
    ("metric", "score", "control", "told"),
    [("accuracy_strict", 0.6, 0.56, True), ("accuracy_strict", 0.6, 0.5, False),
     ("log_loss", 0.6, 0.64, True), ("log_loss", 0.6, 0.7, False)],
)  # fmt: skip
def test_a_score_that_a_control_comes_up_to_is_pointed_at(
    metric: str, score: float, control: float, told: bool, tmp_path: Path
) -> None:
    worst = 0.1 if metric == "accuracy_strict" else 0.9
    controls = {key: {metric: interval(control if key == "question_only" else worst)} for key in CONDITIONS}
    page = shown(write_run(tmp_path, {"set/side": entry(8, {metric: score}, controls=controls)}, [record(0)]))
    assert ("question comes as far" in page.text) is told


def test_markers_of_one_value_do_not_cover_each_other(tmp_path: Path) -> None:
    controls = {key: {"accuracy_strict": interval(0.5)} for key in CONDITIONS}
    text = write_report(write_run(tmp_path, {"set/side": entry(8, controls=controls)}, [record(0)])).read_text()
    (plot,) = re.findall(r'<svg class="plot"[^>]*aria-label="Left.*?</svg>', text, re.DOTALL)
    heights = re.findall(r'class="span (?:blank|shuffled|question|majority)\w*" d="M\S+ (\S+)H', plot)
    assert len(heights) == len(set(heights)) == 4
    height = float(re.search(r'viewBox="0 0 \S+ (\S+)"', plot)[1])  # type: ignore[index]
    assert max(map(float, heights)) + 4 < height


def test_probes_and_groups(tmp_path: Path) -> None:
    probe = {"n": 120, "consistency": interval(0.91), "metrics": {"accuracy_strict": interval(0.7)}}
    none = {"n": 0, "consistency": {}, "metrics": {}}
    groups = {
        "answer_type": {
            "open": {"n": 80, "metrics": {"accuracy_strict": interval(0.4)}},
            "closed": {"n": 40, "metrics": {}},
        },
        "modality": {"CT": {"n": 120, "metrics": {"accuracy_strict": interval(0.75)}}},  # one value: nothing to compare
        "study": {},
    }  # fmt: skip
    reasons = {"mirrored": {"no side in the answer": 30}}
    task = entry(150, probes={"mirrored": probe, "options_shuffled": none}, groups=groups, not_applicable=reasons)
    page = shown(write_run(tmp_path, {"set/side": task}, [record(0)]))
    assert "Left or right mirrored 120 of 150 91.0 % 86.0 – 96.0 70.0 75.0" in page.text
    assert "Left or right options shuffled 0 of 150 applies to none of the questions" in page.text
    assert "mirrored 30 no side in the answer" in page.text
    assert len(page.of("div", "panel group")) == 1
    assert "Left or right by answer type accuracy_strict, 0 to 100 %; all 75.0 open 80 40.0" in page.text
    assert "closed 40 no score –" in page.text


def matrix(page: Page) -> list[str]:
    """Return the words of the page's one confusion matrix."""
    return (
        page.text.split("Which answers are confused")[1]
        .split("Shade: share of the row. ")[1]
        .split("How long")[0]
        .split()
    )


def test_confusions(tmp_path: Path) -> None:
    answers = [
        ("left", "left", 5),
        ("left", "right", 2),
        ("right", "right", 4),
        ("Right.", "up", 1),
        ("right", None, 3),
    ]
    made = [
        record(number, reference=truth, parsed=given, answer=given or "")
        for number, (truth, given) in enumerate(pair for *pair, times in answers for _ in range(times))
    ]
    words = matrix(shown(write_run(tmp_path, {"set/side": entry(15)}, made)))
    assert " ".join(words) == "Left or right left right other none left 5 2 right 4 1 3"


@pytest.mark.parametrize(("labels", "family", "each", "drawn"), [
    (12, "choice", 1, True), (13, "choice", 1, False), (12, "open", 3, True), (12, "open", 2, False),
    (1, "closed", 9, False),
])  # fmt: skip
def test_only_a_few_labels_make_a_matrix(labels: int, family: str, each: int, drawn: bool, tmp_path: Path) -> None:
    made = [record(n, reference="ABCDEFGHIJKLM"[n % labels], parsed="A") for n in range(labels * each)]
    page = shown(write_run(tmp_path, {"set/side": entry(len(made), family=family)}, made))
    assert ("Which answers are confused" in page.text) is drawn
    if drawn:
        assert matrix(page)[3 : 3 + labels] == list("ABCDEFGHIJKL")


def test_boxes_and_reports_have_no_matrix(tmp_path: Path) -> None:
    made = [record(n, reference=[1, 2, 3, 4], parsed=[1, 2, 3, 5], scores={"iou_mean": 0.4}) for n in range(9)]
    made += [record(n, task="set/report", reference=f"{'long ' * 20}{n % 2}") for n in range(9)]
    tasks = {"set/side": entry(9, {"iou_mean": 0.4}, family="rec"), "set/report": entry(9, family="report")}
    assert "Which answers are confused" not in shown(write_run(tmp_path, tasks, made)).text


@given(
    st.lists(st.tuples(st.lists(st.floats(-30, 0), min_size=2, max_size=4), st.integers(0, 3)), min_size=1, max_size=60)
)
def test_calibration_is_that_of_the_metric(questions: list[tuple[list[float], int]]) -> None:
    made = []
    for number, (values, true) in enumerate(questions):
        ranked = dict(zip("ABCD", values, strict=False))
        made.append(record(number, reference=list(ranked)[true % len(ranked)], parsed="A", likelihoods=ranked))
    made.append(record(len(made)))  # one whose options were not ranked
    found = survey(lambda: iter(made), {"set/side": entry()}, 1)["set/side"].charts.calibration()
    answers = Answers(
        [one["parsed"] for one in made],
        [one["reference"] for one in made],
        likelihoods=[one.get("likelihoods") for one in made],
    )
    statistics, _ = measure(["calibration_error"], answers)
    expected = statistics["calibration_error"].scores(np.ones((1, len(made))))[0]
    assert found is not None and found["error"] == pytest.approx(expected, abs=1e-9)
    assert found["n"] == len(questions) == sum(bin_["n"] for bin_ in found["bins"])


def test_calibration_is_drawn_where_options_were_ranked(tmp_path: Path) -> None:
    ranked = [record(n, likelihoods={"left": -0.2, "right": -1.7}) for n in range(6)]
    page = shown(write_run(tmp_path / "a", {"set/side": entry(6)}, ranked))
    assert "ECE 0.182" in page.text and "mean confidence 81.8 %, right 100.0 %" in page.text
    assert "ECE" not in shown(write_run(tmp_path / "b", {"set/side": entry(6)}, [record(n) for n in range(6)])).text


def test_lengths(tmp_path: Path) -> None:
    said = ["", "one", "one two three", "w " * 400]
    made = [record(n, answer=answer, parsed=answer or None, reference="a b") for n, answer in enumerate(said)]
    made += [record(9, task="set/box", answer="[1, 2, 3, 4]", parsed=[1, 2, 3, 4], reference=[1, 2, 3, 4])]
    tasks = {"set/side": entry(4), "set/box": entry(1, title="Boxes", family="rec")}
    page = shown(write_run(tmp_path, tasks, made))
    assert "Left or right 101.0 2.0 1 2 400 25.0 %" in page.text  # mean, true mean, median, true median, longest, empty
    assert "Boxes 4.0 – 4 – 4 0.0 %" in page.text
    bars = survey(lambda: iter(made), tasks, 1)["set/side"].charts.lengths()
    assert bars is not None and len(bars["said"]) <= 18 and bars["said"][0] == 100 and bars["true"] == [100, *[0] * 17]


def cards(page: Page) -> list[dict[str, str | None]]:
    return page.of("article", "card")


def test_cards_tell_what_was_said_under_every_control_and_probe(tmp_path: Path) -> None:
    first = wrong(0, prompt="user: [image]An example?\nassistant: Yes.\nuser: [image]Left or right?")
    others = [
        record(0, control="blank_image", answer="a grey nothing"),
        record(0, control="shuffled_image", answer=""),
        record(0, control="question_only", answer="left I guess", prompt="user: Left or right?"),
        record(0, control="majority", answer="no word of its own"),
        record(0, control="mirrored", answer="left", consistent=True),
        record(0, control="paraphrased", answer="neither", consistent=False, prompt="user: Which side, tell?"),
        *(record(0, control="paraphrased", answer=f"again {n}", consistent=True) for n in range(9)),
    ]
    page = shown(write_run(tmp_path, {"set/side": entry(1)}, [*others, first]))  # in whatever order they were written
    assert (
        "✗ wrong Left or right? right true left blank a grey nothing shuffled (nothing) question left I guess "
        "mirrored ✓ left paraphrased ✗ neither paraphrased ✓ again 0 paraphrased ✓ again 1 paraphrased ✓ again 2 prompt"
    ) in page.text
    assert "An example? assistant: Yes. user:" in page.text
    assert "paraphrased user: Which side, tell?" in page.text
    assert "no word of its own" not in page.text
    assert "sample s0 patient p0 modality MR answer type closed" in page.text


def test_graded_answers_are_right_partly_or_wrong(tmp_path: Path) -> None:
    boxes = [record(n, reference=[0, 0, 4, 4], parsed=[0, 0, 4, n], scores={"iou_mean": n / 4}) for n in range(5)]
    reports = [record(n, task="set/report", scores={"cider": 4.0, "token_f1": n / 2}) for n in range(3)]
    plain = [record(n, task="set/own", scores={}, parsed=said) for n, said in enumerate(("Left.", "right", None))]
    tasks = {
        "set/side": entry(5, {"iou_mean": 0.5}, family="rec"),
        "set/report": entry(3, {"cider": 3.0, "token_f1": 0.5}),
        "set/own": entry(3, {"log_loss": 0.3}),
    }
    page = shown(write_run(tmp_path, tasks, [*boxes, *reports, *plain]))
    counts = Counter((card["data-task"], card["data-outcome"]) for card in cards(page))
    assert counts == {
        ("set/side", "right"): 3, ("set/side", "partly"): 1, ("set/side", "wrong"): 1,
        ("set/report", "right"): 1, ("set/report", "partly"): 1, ("set/report", "wrong"): 1,
        ("set/own", "right"): 1, ("set/own", "wrong"): 2,
    }  # fmt: skip
    assert "≈ partly · 0.25" in page.text and "✓ right · 0.75" in page.text


def test_where_the_primary_metric_grades_no_single_answer_another_one_does(tmp_path: Path) -> None:
    given = [{"options_ranked": 1.0, "token_f1": 0.5, "accuracy_options": float(n)} for n in range(2)]
    made = [record(n, scores=scores) for n, scores in enumerate(given)]
    metrics = {"auc": 0.8, "options_ranked": 1.0, "token_f1": 0.5, "accuracy_options": 0.5}
    page = shown(write_run(tmp_path, {"set/side": entry(2, metrics)}, made))
    assert sorted(str(card["data-outcome"]) for card in cards(page)) == ["right", "wrong"]


def test_filters_offer_what_the_cards_have(tmp_path: Path) -> None:
    made = [record(n, modality=("CT", "MR", "")[n % 3], answer_type=("open", "closed")[n % 2]) for n in range(40)]
    made += [wrong(40), record(50, task="set/size")]
    tasks = {"set/side": entry(41), "set/size": entry(1, title="Size")}
    page = shown(write_run(tmp_path, tasks, made))
    options = [attributes["value"] for attributes in page.of("option")]
    assert options == ["", "set/side", "set/size", "", "=", "=CT", "=MR", "", "=closed", "=open"]
    notes = [attributes.get("data-note") for attributes in page.of("option") if attributes.get("data-note")]
    assert notes == ["7 of 41 answers (40 right, 1 wrong)", "1 of 1 answers (1 right)"]
    assert [one["value"] for one in page.of("input")] == ["", "right", "partly", "wrong"]
    kinds = {(card["data-modality"], card["data-type"]) for card in cards(page) if card["data-outcome"] == "right"}
    assert len(kinds) == 6  # every kind among six answers, though drawn at random
    assert {card["data-modality"] for card in cards(page)} == {"=", "=CT", "=MR"}


@given(st.randoms(use_true_random=False), st.integers(1, 8))
def test_the_same_answers_are_chosen_in_whatever_order_they_come(random: Any, each: int) -> None:
    made = [(wrong if n % 3 else record)(n, modality=f"m{n % 2}") for n in range(50)]
    ids = []
    for _ in range(2):
        random.shuffle(made)
        found = survey(lambda: iter(made), {"set/side": entry()}, each)["set/side"]
        assert found.counts == {"right": 17, "partly": 0, "wrong": 33}
        ids.append([one.record["id"] for one in found.chosen])
    assert ids[0] == ids[1] and len(ids[0]) == 2 * each


class Line(dict):  # type: ignore[type-arg]
    """A record that tells how many of its kind are alive."""

    alive = most = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Line.alive += 1
        Line.most = max(Line.most, Line.alive)

    def __del__(self) -> None:
        Line.alive -= 1


def test_of_many_answers_only_those_shown_are_held() -> None:
    tasks = {f"set/{number}": entry(1000) for number in range(100)}

    def read() -> Iterator[Line]:
        for number in range(60_000):
            yield Line(
                (wrong if number // 100 % 4 else record)(number, task=f"set/{number % 100}", answer=f"word {number}")
            )

    Line.most = Line.alive
    found = survey(read, tasks, 6)
    chosen = sum(len(one.chosen) for one in found.values())
    assert chosen == 200  # of a hundred tasks, one right and one wrong answer each
    assert Line.most <= chosen + 2
    assert sum(sum(one.counts.values()) for one in found.values()) == 60_000


def test_a_page_of_hundreds_of_tasks_is_bounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [tmp_path / f"{number}.png" for number in range(6)]
    for path in pictures:
        PillowImage.fromarray(rng.integers(0, 255, (500, 500, 3), np.uint8)).save(path)  # the worst to compress
    names = [f"set{number // 50}/t{number}" for number in range(300)]
    words = "word " * 3000
    made = [
        (record, wrong)[n % 2](n, task=name, media=[str(pictures[n % 6])], answer=words, parsed=words, prompt=words)
        for name in names
        for n in range(4)
    ]
    path = write_report(write_run(tmp_path, {name: entry(4) for name in names}, made))
    assert path.stat().st_size < 10_000_000
    page = Page(path.read_text())
    assert len(cards(page)) == 360
    pictures_shown = sum(len(image["href"] or "") for image in page.of("image"))
    assert 3_900_000 < pictures_shown < 4_200_000
    assert "left out, for the page would become too large" in page.text
    assert "(15,000 characters in all)" in page.text


def test_media_are_shown_as_far_as_they_can(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    PillowImage.new("RGB", (60, 30), (9, 200, 9)).save(tmp_path / "whole.png")
    made = [
        record(0, media=[str(tmp_path / "torn.png")]),
        record(1, media=[str(tmp_path / "whole.png")] * 3, question_boxes=[[1, 2, 30, 20]]),
        record(2),
    ]
    page = shown(write_run(tmp_path, {"set/side": entry(3)}, made))
    assert "torn.png" in page.text and "no picture to show" in page.text and "1 of 3" in page.text
    (image,) = page.of("image")
    assert (image["width"], image["height"], image["decoding"]) == ("60", "30", "async")
    assert [(box["x"], box["width"]) for box in page.of("rect", "box-asked")[1:]] == [("1", "29")]


def test_samples_and_what_became_of_them(tmp_path: Path) -> None:
    lost = [{"id": f"x{n}", "task": "set/side", "control": "", "reason": "torn " * 200} for n in range(250)]
    lost += [{"id": "y", "task": "set/side", "control": "shuffled_image", "reason": "alone"}]
    task = entry(1234, patients=77, unparsed=5, empty=3)
    page = shown(write_run(tmp_path, {"set/side": task}, [record(0)], lost))
    assert "Left or right set/side 1,234 77 250 1 5 3" in page.text
    assert "Questions that could not be asked: 251 The first 200; all of them are in scores.json." in page.text
    assert page.text.count("(1,000 characters in all)") == 200


def test_provenance_is_complete(tmp_path: Path) -> None:
    page = shown(write_run(tmp_path, {"set/side": entry()}, [record(0)], endpoint={"retries": 3}))
    assert '"retries": 3' in page.text


def test_files_of_two_evaluations_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, {"set/side": entry()}, [record(0, task="set/other")])
    with pytest.raises(ValueError, match=r"'set/other', which scores\.json has no scores of"):
        write_report(tmp_path)
    (tmp_path / "predictions.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"predictions\.jsonl:1: not a JSON object but list"):
        write_report(tmp_path)


def test_the_terminal_names_probes_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    probe = {"n": 120, "consistency": interval(0.91), "metrics": {}}
    told = {"green": "give its folder"}
    task = entry(150, {"log_loss": 0.4}, probes={"mirrored": probe}, unavailable=told)
    reports = entry(9, {"cider": 3.2}, title="Reports", unavailable=told)
    print_table({"tasks": {"set/side": task, "set/report": reports}, "excluded": []})
    text = capsys.readouterr().out
    told_of = "consistent answers, Left or right: mirrored 91.0% (120)"
    missing = "no green (Left or right, Reports): give its folder"
    for words in ("question", "↓log_loss", "0.400", "0.350-0.450", "3.20", told_of, missing):
        assert words in text, words
