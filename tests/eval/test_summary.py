"""Evaluations side by side: what stands where, what is marked, what keeps numbers from being comparable."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medmvl.core.config import ConfigError
from medmvl.core.lookup import LookupNameError
from medmvl.eval.formats import Grid, comma_separated, latex, markdown, print_grid
from medmvl.eval.suite import Suite, baselines, load_suite, suite_names
from medmvl.eval.summary import Run, completed, read_runs, suite_grid, task_grid, write_tables
from medmvl.eval.task import load_tasks


def interval(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def entry(title: str, n: int = 50, version: str = "1.0", **metrics: float) -> dict[str, Any]:
    """Return a task's entry of scores.json; the first metric is the primary one, blank pictures have half of it."""
    return {
        "n": n,
        "version": version,
        "title": title,
        "family": "open",
        "primary": next(iter(metrics)),
        "metrics": {name: interval(value) for name, value in metrics.items()},
        "controls": {"blank_image": {name: interval(value / 2) for name, value in metrics.items()}},
        "unavailable": {},
    }


def run(name: str, **tasks: dict[str, Any]) -> Run:
    named = {task.replace("__", "/"): told for task, told in tasks.items()}
    return Run(name, {"provenance": {"model": name, "data_hash": "a"}, "tasks": named, "excluded": []})


SUITE = Suite(
    name="mine",
    title="Mine",
    source="nowhere",
    columns=[
        {"group": "SLAKE", "heading": "VQA", "task": "slake/vqa", "metric": "bleu1_sentence"},
        {"group": "SLAKE", "heading": "CIDEr", "task": "slake/report", "metric": "cider"},
        {"heading": "Brier", "task": "slake/closed", "metric": "brier_score"},
    ],
)
OURS = run(
    "ours",
    slake__vqa=entry("SLAKE", token_f1=0.5, bleu1_sentence=0.6234),
    slake__report=entry("Reports", cider=1.5),
    slake__closed=entry("Closed", brier_score=0.2),
)
THEIRS = run(
    "theirs",
    slake__vqa=entry("SLAKE", token_f1=0.6, bleu1_sentence=0.61),
    slake__report=entry("Reports", cider=0.9),
    slake__closed=entry("Closed", brier_score=0.1),
)


def texts(grid: Grid) -> dict[str, list[str]]:
    return {row.label: [cell.text for cell in row.cells] for row in grid.rows}


def row(grid: Grid, label: str) -> Any:
    return next(one for one in grid.rows if one.label == label)


def shown(grid: Grid, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    print_grid(grid, console)
    return console.file.getvalue()


def test_a_suite_has_a_row_for_each_system_and_the_best_stands_out() -> None:
    grid = suite_grid([OURS, THEIRS], SUITE)
    assert [heading.label for heading in grid.headings] == ["SLAKE VQA", "SLAKE CIDEr", "Brier ↓"]
    assert texts(grid) == {
        "ours": ["62.3", "1.50", "0.200"],  # a share in percent, others as they are
        "theirs": ["61.0", "0.90", "0.100"],
        "questions": ["50", "50", "50"],
    }
    assert [cell.around for cell in row(grid, "ours").cells] == ["[60.3, 64.3]", "[1.48, 1.52]", "[0.180, 0.220]"]
    assert [cell.best for cell in row(grid, "ours").cells] == [True, True, False]  # of an error the lowest
    assert [cell.best for cell in row(grid, "theirs").cells] == [False, False, True]
    assert not any(cell.best for cell in row(suite_grid([OURS], SUITE), "ours").cells)


def test_controls_stand_below_their_system() -> None:
    grid = suite_grid([OURS, THEIRS], SUITE, controls=True)
    assert [one.label for one in grid.rows] == ["ours", "ours, blank", "theirs", "theirs, blank", "questions"]
    assert texts(grid)["ours, blank"] == ["31.2", "0.75", "0.100"]
    assert not any(cell.best for cell in row(grid, "ours, blank").cells)


def test_published_numbers_are_marked_and_never_the_best() -> None:
    suite = load_suite("medm_vl_2d")
    ours = run("ours", slake__vqa=entry("SLAKE", bleu1_sentence=0.10), pathvqa__vqa=entry("P", bleu1_sentence=0.2))
    grid = suite_grid([ours], suite, reported=True)
    labels = [column.label for column in suite.columns]
    measured, card = row(grid, "ours"), row(grid, "MedM-VL-2D-3B-en")
    assert measured.kind == "measured" and card.kind == "reported"
    assert measured.cells[labels.index("SLAKE VQA")].text == "10.0"
    vqa, caption = card.cells[labels.index("SLAKE VQA")], card.cells[labels.index("MIMIC-CXR")]
    assert (vqa.text, vqa.mark, vqa.around, vqa.best) == ("84.45", "†", "", False)
    assert (caption.text, caption.mark) == ("22.63", "‡")  # of which metric it is, nobody tells
    assert {cell.mark for cell in row(grid, "RadFM").cells if cell.text} == {"‡"}
    assert row(grid, "RadFM").cells[labels.index("SLAKE REC")].text == ""
    notes = "\n".join(grid.notes)
    assert "† Reported by others, not measured here." in notes and "‡ Reported" in notes
    assert "RadFM, LLaVA-Med: model card of shiym2000/MedM-VL-2D-3B-en" in notes
    assert not any(one.kind == "reported" for one in suite_grid([ours], suite).rows)
    for text in (markdown(grid), latex(grid), shown(grid, 200)):
        assert "84.45" in text and ("†" in text or r"84.45\textsuperscript{\textdagger{}}" in text)
    kinds = {line["system"]: line["kind"] for line in csv.DictReader(io.StringIO(comma_separated(grid)))}
    assert kinds["MedM-VL-2D-3B-en"] == "reported" and kinds["ours"] == "measured"


def test_published_numbers_can_stand_alone() -> None:
    grid = suite_grid([], load_suite("m3d_bench"), reported=True)
    assert [one.label for one in grid.rows] == ["RadFM", "M3D-LaMed", "Med3DVLM", "MedM-VL-CT-3B-en"]
    assert row(grid, "M3D-LaMed").cells[0].text == "15.15"


def test_without_a_suite_there_is_a_row_for_each_task_that_all_share() -> None:
    other = run("theirs", slake__vqa=entry("SLAKE", n=40, token_f1=0.6), alone=entry("Alone", token_f1=1.0))
    grid = task_grid([OURS, other])
    assert [heading.name for heading in grid.headings] == ["metric", "questions", "ours", "theirs"]
    assert texts(grid) == {"SLAKE": ["token_f1", "50 / 40", "50.0", "60.0"]}
    assert [cell.best for cell in grid.rows[0].cells] == [False, False, False, True]
    assert any("slake/vqa were answered ours 50, theirs 40" in note for note in grid.notes)
    with pytest.raises(ValueError, match=r"share no task.*ours: slake/vqa.*b: alone"):
        task_grid([OURS, run("b", alone=entry("Alone", token_f1=1.0))])


def test_one_evaluation_has_its_controls_beside_it() -> None:
    grid = task_grid([OURS], controls=True)
    assert [heading.name for heading in grid.headings][:4] == ["metric", "questions", "score", "blank"]
    assert texts(grid)["Closed"][:4] == ["brier_score ↓", "50", "0.200", "0.100"]


def test_what_is_not_comparable_is_told() -> None:
    other = run("theirs", slake__vqa=entry("SLAKE", version="2.0", n=49, bleu1_sentence=0.6))
    grid = suite_grid([OURS, other], SUITE)
    notes = "\n".join(grid.notes)
    assert "Not comparable: slake/vqa was evaluated in several versions (ours 1.0, theirs 2.0)." in notes
    assert "Not the same questions: of slake/vqa were answered ours 50, theirs 49." in notes
    assert texts(grid)["questions, theirs"] == ["49", "", ""]
    moved = Run("moved", {**OURS.scores, "provenance": {"model": "m", "data_hash": "b"}, "excluded": [{}, {}]})
    notes = "\n".join(suite_grid([OURS, moved], SUITE).notes)
    assert "different data hashes" in notes and "moved: 2 questions could not be asked" in notes


def test_missing_numbers_are_explained() -> None:
    lacking = entry("SLAKE", token_f1=0.5) | {"unavailable": {"bleu1_sentence": "install this\nand that"}}
    old = run("old", slake__vqa=lacking, slake__report=entry("R", token_f1=0.5), slake__closed=entry("C", 0, auc=0.0))
    grid = suite_grid([old], SUITE)
    assert texts(grid)["old"] == ["", "", ""]
    assert "old, SLAKE VQA: install this and that" in grid.notes
    assert any("SLAKE CIDEr: not scored by cider (task version 1.0)" in note for note in grid.notes)
    wrong = SUITE.model_copy(update={"columns": [SUITE.columns[0].model_copy(update={"metric": "cidr"})]})
    with pytest.raises(LookupNameError, match="did you mean 'cider'"):
        suite_grid([OURS], wrong)


def test_runs_are_read_and_named(tmp_path: Path) -> None:
    for folder, model in (("a", "llava"), ("b", "llava"), ("c=d", "x\x1b[31m\ny")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "scores.json").write_text(json.dumps({**OURS.scores, "provenance": {"model": model}}))
    names = [one.name for one in read_runs([tmp_path / "a", tmp_path / "c=d"])]
    assert names == ["llava", "x [31m y"]
    names = [one.name for one in read_runs([tmp_path / "a", f"ours={tmp_path / 'b' / 'scores.json'}"])]
    assert names == ["llava", "ours"]
    names = [one.name for one in read_runs([tmp_path / "a", tmp_path / "b"])]
    assert names == [f"llava ({tmp_path / 'a'})", f"llava ({tmp_path / 'b'})"]
    with pytest.raises(ValueError, match="several evaluations are called x; name them: NAME=FOLDER"):
        read_runs([f"x={tmp_path / 'a'}", f"x={tmp_path / 'b'}"])


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"tasks": {}}', '{"provenance": {"model": "m"}}'])
def test_what_is_no_evaluation_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    with pytest.raises(ValueError, match=r"scores\.json: (no scores of an evaluation can be read|holds no scores)"):
        read_runs([tmp_path])


def test_tables_are_written_beside_the_scores(tmp_path: Path) -> None:
    suite = load_suite("m3d_bench")
    whole = run("ours", **{
        task.replace("/", "__"): entry(task, **{c.metric: 0.5 for c in suite.columns if c.task == task})
        for task in suite.tasks
    })  # fmt: skip
    assert list(completed(whole.scores)) == ["m3d_bench"]
    (tmp_path / "scores.json").write_text(json.dumps(whole.scores))
    files = {file.name for file in write_tables(tmp_path)}
    assert files == {f"{name}.{suffix}" for name in ("table", "table_m3d_bench") for suffix in ("md", "tex", "csv")}
    assert "M3D-LaMed" in (tmp_path / "table_m3d_bench.md").read_text("utf-8")
    assert "M3D-LaMed" not in (tmp_path / "table.md").read_text("utf-8")
    assert not completed(OURS.scores)


def test_a_narrow_screen_turns_the_table_and_keeps_its_numbers() -> None:
    grid = suite_grid([OURS, THEIRS], SUITE)
    assert shown(grid, 120).splitlines()[2].split() == ["system", "VQA", "CIDEr", "Brier", "↓"]
    columns = [SUITE.columns[0].model_copy(update={"group": "", "heading": f"column {n}"}) for n in range(9)]
    turned = shown(suite_grid([OURS, THEIRS], SUITE.model_copy(update={"columns": columns})), 60).splitlines()
    assert turned[1].split() == ["system", "ours", "theirs", "questions"]
    assert [line.split()[:4] for line in turned[2:20:2]] == [["column", str(n), "62.3", "61.0"] for n in range(9)]
    assert turned[3].split() == ["[60.3,", "64.3]", "[59.0,", "63.0]"]
    smallest = shown(grid, 40)  # intervals give way, numbers do not
    assert "62.3" in smallest and "0.100" in smallest and "[60.3" not in smallest


def test_suites_are_found_by_name_and_file_and_are_checked(tmp_path: Path) -> None:
    with pytest.raises(LookupNameError, match=r"unknown suite 'medm2d'; did you mean 'medm_vl_2d'\? Suites: .*uni_med"):
        load_suite("medm2d")
    file = tmp_path / "mine.yaml"
    column = "  - {heading: A, task: slake/vqa, metric: token_f1}\n"
    file.write_text(f"name: mine\ntitle: Mine\nsource: me\ncolumns:\n{column}")
    assert load_suite(file).tasks == ["slake/vqa"] and baselines(load_suite(file)) is None
    assert [task.name for task in load_tasks(file)] == ["slake/vqa"]
    file.write_text(f"name: mine\ntitle: Mine\nsource: me\ncolumns:\n{column}{column}")
    with pytest.raises(ConfigError, match="several are called 'A'; give them groups"):
        load_suite(file)
    file.write_text("name: mine\ntitle: Mine\nsource: me\ncolumns: [{heading: A, task: slake/vqa, metric: token_f}]\n")
    with pytest.raises(ValueError, match="suite mine: slake/vqa has no metric 'token_f'; did you mean 'token_f1'"):
        load_tasks(file)
    file.write_text("name: mine\ntitle: Mine\nsource: me\ncolumns: [{heading: A, task: slake/vqo, metric: token_f1}]\n")
    with pytest.raises(LookupNameError, match="unknown task 'slake/vqo'; did you mean 'slake/vqa'"):
        load_tasks(file)


def test_published_numbers_belong_to_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"medm_vl_2d", "medm_vl_ct", "m3d_bench", "uni_med"} <= set(suite_names())
    suite = load_suite("m3d_bench")
    renamed = suite.model_copy(update={"columns": suite.columns[1:]})
    with pytest.raises(ValueError, match="RadFM: the suite has no column 'Report BLEU'; did you mean"):
        baselines(renamed)
