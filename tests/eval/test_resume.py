"""An evaluation that is stopped goes on where it was, processes share one, and the scores are the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from medmvl.core.atomic import BusyError, only_writer
from medmvl.core.processes import start_ranks, wait_for_ranks
from medmvl.core.schema import Sample, SampleError
from medmvl.eval.engines.engine import Answered, EngineError
from medmvl.eval.metrics.metric import MetricUnavailable
from medmvl.eval.run import evaluate
from medmvl.eval.task import Generation
from paper_model import PaperModel, write_store

TASKS = [f"brain_atlas/{family}" for family in ("side", "choice", "report", "rec")]


class Counting(PaperModel):
    """A paper model that fails after so many answers, as an endpoint does."""

    name, hash, identity, remote, asks = "paper", "p1", "p1", False, True

    def __init__(self, samples: Sequence[Sample], most: int = 10**9, failing: frozenset[str] = frozenset()) -> None:
        super().__init__(samples, errs=0.3)
        self.left, self.answered, self.failing = most, [], failing

    def answer(self, prompts: Sequence[Sample], settings: Generation) -> Answered:
        for place, prompt in reversed(list(enumerate(prompts))):  # in no order
            if prompt.id in self.failing:
                yield place, SampleError("cut off", prompt.id)
                continue
            if not self.left:
                raise EngineError("the endpoint answers no more")
            self.left -= 1
            self.answered.append(prompt.id)
            yield place, self._answer(prompt)

    def likelihoods(self, prompts: Sequence[Sample], options: Sequence[Sequence[str]]) -> None:
        raise MetricUnavailable("paper ranks nothing")

    def boxes(self, text: str, sample: Sample) -> list:
        return self.processor.boxes_from_text(text, sample)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    root = tmp_path_factory.mktemp("data")
    return root, write_store(root / "brain_atlas")


def scored(model: Counting, root: Path, out: Path | None, **options: object) -> dict:
    return evaluate(model, TASKS, out, roots=[root], resamples=50, **options)


def test_only_what_is_missing_is_asked(store: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    root, samples = store
    whole = Counting(samples)
    wanted = scored(whole, root, None)
    total, done = len(whole.answered), 0
    for most in (1, 20, 50):
        model = Counting(samples, most)
        with pytest.raises(EngineError, match="no more"):
            scored(model, root, tmp_path, batch_size=16)
        done += len(model.answered)
    last = Counting(samples)
    assert scored(last, root, tmp_path)["tasks"] == wanted["tasks"]
    assert done + len(last.answered) == total
    again = Counting(samples, most=0)
    assert scored(again, root, tmp_path)["tasks"] == wanted["tasks"]  # nothing is asked, all is scored
    assert json.loads((tmp_path / "scores.json").read_text())["tasks"] == json.loads(json.dumps(wanted["tasks"]))


def test_what_decides_an_answer_decides_whether_it_is_asked_again(
    store: tuple[Path, list[Sample]], tmp_path: Path
) -> None:
    root, samples = store
    scored(Counting(samples), root, tmp_path)
    other = Counting(samples)
    other.identity = "p2"
    scored(other, root, tmp_path)
    assert other.answered  # another model
    os.utime(samples[0].media_key[0])
    touched = Counting(samples)
    scored(touched, root, tmp_path)
    asked = {sample.id for sample in samples if sample.media_key == samples[0].media_key and sample.task in TASKS}
    assert {name for name in touched.answered if name in asked} and len(touched.answered) < len(other.answered) / 2


def test_what_could_not_be_asked_is_tried_again(store: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    root, samples = store
    wrong = frozenset(sample.id for sample in samples if sample.task == TASKS[0])
    some = frozenset(sorted(wrong)[:3])
    first = scored(Counting(samples, failing=some), root, tmp_path)
    assert {one["id"] for one in first["excluded"]} == some
    model = Counting(samples)
    second = scored(model, root, tmp_path)
    assert second["excluded"] == [] and second["tasks"] == scored(Counting(samples), root, None)["tasks"]
    assert some <= set(model.answered)


def test_one_evaluation_writes_to_a_folder(store: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    root, samples = store
    with only_writer(tmp_path / "out"), pytest.raises(BusyError, match="another process"):
        scored(Counting(samples), root, tmp_path / "out")


SCRIPT = """
import sys, time
sys.path[:0] = {paths!r}
import test_resume
from pathlib import Path
from medmvl.data.store import SampleStore
from medmvl.eval import team
root, out = Path({root!r}), Path({out!r})
class Slow(test_resume.Counting):
    def answer(self, prompts, settings):
        for place, said in super().answer(prompts, settings):
            time.sleep({wait})
            yield place, said
model = Slow(list(SampleStore(root / "brain_atlas", "test")))
test_resume.scored(model, root, out, batch_size=8)
crew = team.team()
(out / f"rank{{crew.rank}}.txt").write_text("\\n".join(model.answered))
"""


def script(root: Path, out: Path, wait: float) -> list[str]:
    here = Path(__file__).parent
    text = SCRIPT.format(paths=[str(here), str(here.parent)], root=str(root), out=str(out), wait=wait)
    return [sys.executable, "-c", text]


def test_killed_at_any_moment(store: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    root, samples = store
    process = subprocess.Popen(script(root, tmp_path, 0.02))
    file = tmp_path / "answers" / "process0.jsonl"
    while not (file.is_file() and file.read_bytes().count(b"\n") > 20):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = file.read_bytes().count(b"\n")
    model = Counting(samples)
    assert scored(model, root, tmp_path)["tasks"] == scored(whole := Counting(samples), root, None)["tasks"]
    assert len(model.answered) == len(whole.answered) - kept


@pytest.mark.distributed
def test_two_processes_share_the_questions(store: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    root, samples = store
    assert wait_for_ranks(start_ranks(script(root, tmp_path, 0.0), 2)) == 0
    asked = [(tmp_path / f"rank{rank}.txt").read_text().split() for rank in (0, 1)]
    wanted = scored(whole := Counting(samples), root, None)
    assert sorted(asked[0] + asked[1]) == sorted(whole.answered)
    assert abs(len(asked[0]) - len(asked[1])) < len(whole.answered) / 4
    assert json.loads((tmp_path / "scores.json").read_text())["tasks"] == json.loads(json.dumps(wanted["tasks"]))
