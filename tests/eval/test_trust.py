"""What would make a score wrong in silence, or show data to whom it must not be shown."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from chat_server import Reply, serving
from medmvl.core.schema import Sample
from medmvl.data.store import write_samples
from medmvl.eval.answered import AnswerLog
from medmvl.eval.compare import compare, comparison_grid
from medmvl.eval.run import evaluate
from medmvl.eval.summary import read_runs, task_grid
from medmvl.eval.table import print_table
from medmvl.eval.task import Task
from medmvl.eval.trial import Trial
from paper_model import PaperModel, write_store

SIDE = "brain_atlas/side"


def text_sample(name: str, question: str, answer: str, **more: object) -> Sample:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Sample.from_dict({"id": name, "messages": turns, "task": "mine/vqa", "split": "test", **more})


def mine(root: Path, samples: Sequence[Sample], **manifest: object) -> Path:
    write_samples(root / "mine", samples, name="mine", version="1", licence="none", **manifest)
    return root


def task(**more: object) -> Task:
    about = {"name": "mine/vqa", "version": "1", "title": "Mine", "family": "closed", "source": "mine/vqa"}
    return Task.model_validate({**about, "metrics": ["accuracy_strict"], "controls": ["majority"], **more})


class Said:
    """Answers as told by id, and ranks capitals first."""

    processor = None

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers

    def generate(self, samples: Sequence[Sample], max_new_tokens: int, temperature: float) -> list[str]:
        return [self.answers[sample.id] for sample in samples]

    def score_options_each(self, samples: Sequence[Sample], options: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[-float(option[0].islower()) for option in own] for own in options]


def test_equal_questions_have_their_own_written_answers(tmp_path: Path) -> None:
    root = mine(tmp_path, [text_sample("a", "Which?", "one"), text_sample("b", "Which?", "two")])
    file = tmp_path / "predictions.jsonl"
    lines = [{"id": "a", "prediction": "one"}, {"id": "b", "prediction": "two"}, {"id": "c", "prediction": "x"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = evaluate(f"predictions:{file}", task(), tmp_path / "out", roots=[root], resamples=10)
    assert scores["tasks"]["mine/vqa"]["metrics"]["accuracy_strict"]["value"] == 1
    assert scores["unused_predictions"] == ["c"] and scores["excluded"] == []
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    scores = evaluate(f"predictions:{file}", task(), tmp_path / "out", roots=[root], resamples=10)
    assert scores["tasks"]["mine/vqa"]["n"] == 1 and [one["id"] for one in scores["excluded"]] == ["a"]


def test_answers_of_a_model_that_does_not_say_who_it_is_are_not_kept(tmp_path: Path) -> None:
    root = mine(tmp_path, [text_sample("a", "Which?", "one")])
    for answer, value in (("one", 1), ("two", 0), ("one", 1)):
        scores = evaluate(Said({"a": answer}), task(), tmp_path / "out", roots=[root], resamples=10)
        assert scores["tasks"]["mine/vqa"]["metrics"]["accuracy_strict"]["value"] == value


def test_the_spelling_of_an_option_does_not_tell_the_truth(tmp_path: Path) -> None:
    truths = ["Yes", "no", "No", "yes", "no", "Yes"]
    root = mine(tmp_path, [text_sample(str(n), f"Is it {n}?", truth) for n, truth in enumerate(truths)])
    said = Said({str(n): "no" for n in range(len(truths))})
    for options in (["yes", "no"], "answers"):
        scores = evaluate(said, task(options=options, metrics=["accuracy_options"]), roots=[root], resamples=10)
        entry = scores["tasks"]["mine/vqa"]
        assert entry["metrics"]["accuracy_options"]["value"] < 1, options
        assert entry["unavailable"] == {}  # the majority has no likelihoods; that is no want of the metric


def test_a_box_on_the_second_picture_is_refused(tmp_path: Path) -> None:
    samples = write_store(tmp_path / "brain_atlas")
    (rec,) = [sample for sample in samples if sample.task == "brain_atlas/rec"][:1]
    data = rec.to_dict()
    data["messages"][0]["content"].insert(0, {"type": "image", "path": samples[-1].media_key[0]})
    data["meta"]["boxes"][0]["media"] = 1
    data["task"] = "mine/vqa"
    root = mine(tmp_path, [Sample.from_dict(data)])
    trial = Trial.load(task(answer="box", metrics=["iou_mean"], family="rec"), [root])
    assert not trial.samples and "another medium" in trial.excluded[0].reason


def test_what_training_samples_cannot_tell_stops_nothing(tmp_path: Path) -> None:
    asked = [text_sample("a", "Is it?", "yes", meta={"answer_type": "CLOSED"})]
    trained = [text_sample("b", "What?", "it", meta={"answer_type": "OPEN"}).model_copy(update={"split": "train"})]
    root = mine(tmp_path, asked + trained)
    one = task(select={"answer_type": "CLOSED"})
    scores = evaluate(Said({"a": "yes"}), one, tmp_path / "out", roots=[root], resamples=10)
    assert scores["tasks"]["mine/vqa"]["controls"]["majority"]["accuracy_strict"]["value"] == 1


def test_a_metric_that_fails_is_named_and_loses_no_other(tmp_path: Path) -> None:
    root = mine(tmp_path, [text_sample("a", "Is it?", "yes")])
    one = task(metrics=["accuracy_strict", "math:dist", "paper_model:nothing"])
    scores = evaluate(Said({"a": "yes"}), one, tmp_path / "out", roots=[root], resamples=10)
    entry = scores["tasks"]["mine/vqa"]
    assert set(entry["metrics"]) == {"accuracy_strict"}
    assert (
        "TypeError" in entry["unavailable"]["math:dist"] and "no value" in entry["unavailable"]["paper_model:nothing"]
    )
    for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("wrong", [{"limit": -1}, {"limit": 0}, {"resamples": 0}, {"batch_size": 0}, {"shots": -1}])
def test_numbers_out_of_range_are_refused_at_once(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
        evaluate(Said({}), task(), roots=[tmp_path], **wrong)


def test_credentialed_data_leave_neither_by_a_file_nor_by_a_judge(tmp_path: Path) -> None:
    about = {"source": "mimic_cxr", "task": "mine/vqa"}
    root = mine(tmp_path, [text_sample("a", "Is it?", "yes", **about)])
    engine = "openai:http://192.0.2.1/v1#m"
    for samples in (None, root / "mine" / "test.jsonl"):
        with pytest.raises(ValueError, match="must not leave"):
            evaluate(engine, task(), roots=[root], samples=samples, allow_remote=True)
    judge = {"endpoint": "http://192.0.2.1/v1", "model": "m"}
    one = task(metrics=["accuracy_strict", "judge_score"], metric_options={"judge_score": judge})
    with pytest.raises(ValueError, match="must not leave"):
        evaluate(Said({"a": "yes"}), one, roots=[root], allow_remote=True)
    other = mine(tmp_path / "open", [text_sample("a", "Is it?", "yes")])
    with pytest.raises(ValueError, match="allow-remote"):
        evaluate(Said({"a": "yes"}), one, roots=[other])
    marked = mine(tmp_path / "marked", [text_sample("a", "Is it?", "yes")], credentialed=True)
    with pytest.raises(ValueError, match="must not leave"):
        evaluate(engine, task(), roots=[marked], allow_remote=True)


def test_a_judge_scores_the_questions_and_a_comparison_asks_nobody(tmp_path: Path) -> None:
    root = mine(tmp_path, [text_sample("a", "Is it?", "yes"), text_sample("b", "Is that?", "no")])
    with serving(lambda body, before: Reply("Score: 5")) as server:
        judge = {"endpoint": server.url, "model": "judge"}
        one = task(metrics=["accuracy_strict", "judge_score"], metric_options={"judge_score": judge})
        for name in ("x", "y"):
            scores = evaluate(Said({"a": "ja", "b": "no"}), one, tmp_path / name, roots=[root], resamples=10)
            assert scores["tasks"]["mine/vqa"]["metrics"]["judge_score"]["value"] == 0.5
        asked = len(server.asked)
        assert asked == 4  # two answers in each evaluation, nothing for the majority
        found = compare(tmp_path / "x", tmp_path / "y", resamples=20)
        assert len(server.asked) == asked
        assert "endpoint" in json.dumps(found["tasks"]["mine/vqa"]["not_compared"])
        evaluate(Said({"a": "ja", "b": "no"}), one, tmp_path / "x", roots=[root], resamples=10)
        assert len(server.asked) == asked  # judgements are kept beside the answers


def test_a_line_that_another_process_is_writing_is_read_when_it_is_whole(tmp_path: Path) -> None:
    reader, writer = AnswerLog(tmp_path, 0), tmp_path / "process1.jsonl"
    line = json.dumps({"key": "a", "text": "x" * 50}) + "\n"
    for cut in (1, 20, len(line) - 1, len(line)):
        writer.write_text(line[:cut])
        reader.refresh()
        assert (reader.get("a") is not None) == (cut == len(line))


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    child = f"import os, time; open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(60)"
    parent = (
        "import sys; from medmvl.core.processes import run_ranks; "
        f"sys.exit(run_ranks([sys.executable, '-c', {child!r}], 2))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    while len([file for file in tmp_path.iterdir() if file.read_text()]) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait() == 143
    for file in tmp_path.iterdir():
        assert not Path(f"/proc/{file.read_text()}").exists()


def test_shots_and_limits_are_told(tmp_path: Path) -> None:
    samples = write_store(tmp_path / "brain_atlas")
    scores = evaluate(PaperModel(samples), SIDE, roots=[tmp_path], resamples=10, shots=1, limit=4)
    assert scores["provenance"]["limit"] == 4
    assert scores["tasks"][SIDE]["asked"]["shots"] == 1


def test_a_comparison_tells_what_was_not_asked_alike(tmp_path: Path) -> None:
    samples = write_store(tmp_path / "brain_atlas")
    for name, shots in (("x", 0), ("y", 1)):
        evaluate(PaperModel(samples), SIDE, tmp_path / name, roots=[tmp_path], resamples=10, shots=shots)
    found = compare(tmp_path / "x", tmp_path / "y", resamples=20)
    assert "shots 0" in found["tasks"][SIDE]["asked"]["a"] and "shots 1" in found["tasks"][SIDE]["asked"]["b"]
    told = " ".join(comparison_grid(found).notes)
    assert "was not asked alike" in told
    assert any("Not asked alike" in note for note in task_grid(read_runs([f"x={tmp_path}/x", f"y={tmp_path}/y"])).notes)


def test_boxes_of_a_bundle_score_the_same_through_a_file(tmp_path: Path) -> None:
    samples = write_store(tmp_path / "brain_atlas")
    scores = evaluate(PaperModel(samples), "brain_atlas/rec", tmp_path / "a", roots=[tmp_path], resamples=10)
    rows = [json.loads(line) for line in (tmp_path / "a" / "predictions.jsonl").read_text().splitlines()]
    wanted = scores["tasks"]["brain_atlas/rec"]["metrics"]
    texts = [{"id": row["id"], "prediction": row["answer"]} for row in rows if row["control"] == ""]
    read = [{"id": row["id"], "prediction": "?", "boxes": [row["parsed"]]} for row in rows if row["control"] == ""]
    for lines in (texts, read):
        file = tmp_path / "predictions.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = evaluate(f"predictions:{file}", "brain_atlas/rec", roots=[tmp_path], resamples=10)
        assert found["tasks"]["brain_atlas/rec"]["metrics"] == wanted


def test_a_majority_of_the_judged_answers_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = mine(tmp_path, [text_sample("a", "Is it?", "yes")])
    scores = evaluate(Said({"a": "yes"}), task(), roots=[root], resamples=10)
    assert scores["tasks"]["mine/vqa"]["majority_from"] == "test"
    print_table(scores)
    assert "majority knows the judged answers" in capsys.readouterr().out


def test_what_was_left_out_is_told_where_people_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = mine(tmp_path, [text_sample("a", "Is it?", "yes"), text_sample("b", "Is that?", "no")])
    file = tmp_path / "predictions.jsonl"
    file.write_text('{"id": "a", "prediction": "yes"}\n{"id": "nobody", "prediction": "yes"}\n')
    print_table(evaluate(f"predictions:{file}", task(), roots=[root], resamples=10))
    told = capsys.readouterr().out
    assert "not scored, Mine: 1 (no prediction)" in told and "whose ids no sample has: 1 (nobody" in told
