"""Answers that some other system wrote down: what a file may hold, and how samples find theirs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from medmvl.core.schema import Sample, SampleError
from medmvl.eval.engines.engine import EngineError
from medmvl.eval.engines.predictions import PredictionsEngine, Unmatched
from medmvl.eval.engines.table import open_engine
from medmvl.eval.metrics.metric import MetricUnavailable
from medmvl.eval.task import Generation

ANY = Generation()


def written(folder: Path, *lines: object) -> Path:
    path = folder / "answers.jsonl"
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def asked(name: str, task: str = "", **more: object) -> Sample:
    return Sample.from_dict({"id": name, "task": task, "messages": [{"role": "user", "content": "What?"}], **more})


def test_samples_find_their_answers(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        b"\xef\xbb\xbf" + b'{"id": "a", "prediction": "yes"}',
        {"id": 7, "prediction": "seven", "model": "of another system"},
        b"",
        b'{"id": "a", "task": "own/vqa", "prediction": "own yes"}\r',
        {"id": "b", "prediction": ""},
        {"id": "c", "prediction": "K\u00f6pfe \u4e2d"},
    )
    engine = PredictionsEngine(path)
    samples = [asked("a"), asked("a", "own/vqa"), asked("a", "own/rec"), asked("7"), asked("b"), asked("c"), asked("d")]
    found = [said for _, said in engine.answer(samples, ANY)]
    assert found[:6] == ["yes", "own yes", "yes", "seven", "", "K\u00f6pfe \u4e2d"]
    assert isinstance(found[6], SampleError) and str(found[6]) == "sample 'd': no prediction"
    assert not engine.asks and not engine.remote


def test_what_stays_alone_is_listed_on_both_sides(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "prediction": "x"},
        {"id": "b", "prediction": "x"},
        {"id": "a", "task": "t", "prediction": "x"},
    ]
    engine = PredictionsEngine(written(tmp_path, *lines))
    assert engine.unmatched([asked("a"), asked("a", "t"), asked("b", "u")]) == Unmatched((), ())
    assert engine.unmatched([asked("a", "t"), asked("c", "t"), asked("d")]) == Unmatched(("t: c", "d"), ("a", "b"))
    assert engine.unmatched([]) == Unmatched((), ("a", "b", "t: a"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "x", "prediction": ', "is no JSON"),
        (b"\xff\xfe{", "is not UTF-8"),
        ('{"id": "x", "prediction": "K\u00f6pfe"}'.encode("latin-1"), r"is not UTF-8 \(byte 29\)"),
        (b'["x", "yes"]', "is list, not an object"),
        (b'"x"', "is str, not an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"id": "x", "predicton": "yes"}', "has no 'prediction'; is 'predicton' meant?"),
        (b'{"id": "x", "answer": "yes"}', r"has no 'prediction'; its keys are \['id', 'answer'\]"),
        (b'{"prediction": "yes"}', "has no 'id'"),
        (b'{"id": "x", "prediction": null}', 'an empty answer is ""'),
        (b'{"id": "x", "prediction": 3}', "'prediction' is a text, got 3"),
        (b'{"id": true, "prediction": "yes"}', "'id' is a text"),
        (b'{"id": "x", "task": 1, "prediction": "yes"}', "'task' is a text"),
        (b'{"id": "x", "prediction": "\\ud800"}', "half of a character"),
        (b'{"id": "x", "prediction": "yes", "likelihoods": {"a": NaN}}', "NaN is no number"),
        (b'{"id": "x", "prediction": "yes", "likelihoods": {"a": -1e999}}', "in finite numbers"),
        (b'{"id": "x", "prediction": "yes", "likelihoods": {"a": "-1"}}', "in finite numbers"),
        (b'{"id": "x", "prediction": "yes", "likelihoods": [1]}', "in finite numbers"),
        (b'{"id": "good", "prediction": "again"}', "that of line 1 as well"),
    ],
)
def test_lines_that_are_wrong_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = written(tmp_path, {"id": "good", "prediction": "yes"}, line)
    with pytest.raises(EngineError, match=f"answers.jsonl:2: .*{message}"):
        PredictionsEngine(path)


def test_all_mistakes_are_told_up_to_twenty(tmp_path: Path) -> None:
    path = written(tmp_path, *[{"id": str(number)} for number in range(25)])
    with pytest.raises(EngineError) as error:
        PredictionsEngine(path)
    lines = str(error.value).splitlines()
    assert lines[0] == "25 lines are no predictions:" and lines[-1] == "and 5 more" and len(lines) == 22


def test_files_that_are_none_say_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"gone.jsonl: cannot be read"):
        PredictionsEngine(tmp_path / "gone.jsonl")
    with pytest.raises(EngineError, match="holds no predictions"):
        PredictionsEngine(written(tmp_path, b"", b"  "))
    (tmp_path / "wide.jsonl").write_text('{"id": "x", "prediction": "yes"}\n', encoding="utf-16")
    with pytest.raises(EngineError, match=r"wide.jsonl: is UTF-16"):
        PredictionsEngine(tmp_path / "wide.jsonl")


def test_likelihoods_are_those_of_the_file(tmp_path: Path) -> None:
    scores = {"left": -0.5, "right": -2}
    engine = PredictionsEngine(
        written(tmp_path, {"id": "a", "prediction": "left", "likelihoods": scores}, {"id": "b", "prediction": "left"})
    )
    options = [["right", "left"], ["left", "middle"], ["left"], ["left"]]
    found = [said for _, said in engine.likelihoods([asked("a"), asked("a"), asked("b"), asked("c")], options)]
    assert found[0] == [-2.0, -0.5]
    assert [str(error) for error in found[1:]] == [
        "sample 'a': no likelihood of 'middle'", "sample 'b': no likelihood of 'left'",
        "sample 'c': no likelihood of 'left'",
    ]  # fmt: skip
    with pytest.raises(MetricUnavailable, match="no line has"):
        PredictionsEngine(written(tmp_path, {"id": "a", "prediction": "left"})).likelihoods([], [])


def test_boxes_run_along_the_file(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    PillowImage.fromarray(np.zeros((40, 80), np.uint8)).save(picture)
    part = {"type": "image", "path": str(picture)}
    sample = Sample.from_dict({"id": "a", "messages": [{"role": "user", "content": [part]}]})
    path = written(tmp_path, {"id": "a", "prediction": "[1, 2, 3, 4]"})
    for name, text, box in [
        ("0-1000", "It is at [250, 500, 500, 1000].", (20, 20, 40, 40)),
        ("absolute", "[8, 10, 24, 20]", (8, 10, 24, 20)),
        ("unimed", "{<25><50><50><100>}", (20, 20, 40, 40)),
        ("qwen", "<box>(250,500),(500,1000)</box>", (20, 20, 40, 40)),
    ]:
        assert open_engine(f"predictions:{path}", boxes=name).boxes(text, sample) == [pytest.approx(box)]
    assert open_engine(f"predictions:{path}").boxes("nothing", sample) == []


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    first = PredictionsEngine(written(tmp_path, {"id": "a", "prediction": "x"}))
    assert PredictionsEngine(written(tmp_path, {"id": "a", "prediction": "x"})).hash == first.hash
    assert PredictionsEngine(written(tmp_path, {"id": "a", "prediction": "y"})).hash != first.hash
