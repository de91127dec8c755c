"""Raw answers on disk: nothing that was said is lost, and what is torn is no answer."""

import json
from pathlib import Path

import pytest

from medmvl.eval.answered import AnswerLog


def test_what_one_process_said_the_next_one_knows(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path / "answers")
    log.tidy()
    log.add("a", text="left")
    log.add("b", likelihoods=[-1.5, -0.5])
    log.add("c", error="cut off")
    # Never closed: as after a kill. The error is known to this evaluation, and tried again by the next one.
    assert log.get("c") == {"key": "c", "error": "cut off"}
    later = AnswerLog(tmp_path / "answers")
    later.tidy()
    later.refresh()
    assert later.get("a") == {"key": "a", "text": "left"}
    assert later.get("b") == {"key": "b", "likelihoods": [-1.5, -0.5]}
    assert later.get("c") is None and later.get("d") is None
    assert [file.name for file in (tmp_path / "answers").iterdir()] == ["answers.jsonl"]


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_torn_line_costs_itself_alone(tmp_path: Path, cut: int) -> None:
    log = AnswerLog(tmp_path)
    for key in "abc":
        log.add(key, text=f"answer ä {key}")
    file = tmp_path / "process0.jsonl"
    content = file.read_bytes()
    line = len(content.splitlines(keepends=True)[-1])
    file.write_bytes(content[: len(content) - min(cut, line)])
    later = AnswerLog(tmp_path)
    later.tidy()
    later.refresh()
    assert later.get("a") and later.get("b")
    assert (later.get("c") is not None) == (cut == 1)  # only the end of the line is missing
    later.add("c", text="again")
    last = AnswerLog(tmp_path)
    last.tidy()
    last.refresh()
    assert last.get("c") == {"key": "c", "text": "again"}
    assert all(json.loads(row) for row in (tmp_path / "answers.jsonl").read_text().splitlines())


def test_processes_read_each_other(tmp_path: Path) -> None:
    first, second = AnswerLog(tmp_path, 0), AnswerLog(tmp_path, 1)
    for log in (first, second):
        log.refresh()
    first.add("a", text="1")
    second.add("b", text="2")
    second.add("c", error="broken")
    first.refresh()
    second.refresh()
    assert first.get("b") == {"key": "b", "text": "2"} and first.get("c") == {"key": "c", "error": "broken"}
    assert second.get("a") == {"key": "a", "text": "1"}
    second.add("d", text="3")
    first.refresh()
    assert first.get("d") == {"key": "d", "text": "3"}
    for log in (first, second):
        log.close()


def test_without_a_folder_answers_stay_in_memory(tmp_path: Path) -> None:
    log = AnswerLog(None)
    log.tidy()
    log.add("a", text="left")
    log.refresh()
    log.close()
    assert log.get("a") == {"key": "a", "text": "left"}
    assert not list(tmp_path.iterdir())
