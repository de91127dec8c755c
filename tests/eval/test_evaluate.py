"""The whole road of an evaluation, on a model whose answers are known."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from medmvl.core.schema import Sample, SampleError
from medmvl.data.store import StoreError
from medmvl.eval.engines.table import open_engine
from medmvl.eval.run import evaluate, join
from medmvl.eval.table import headlines, pooled, print_table
from medmvl.eval.task import Generation, load_tasks
from paper_model import PaperModel, write_store

TASKS = [f"brain_atlas/{family}" for family in ("side", "choice", "report", "rec", "reg")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    root = tmp_path_factory.mktemp("data")
    return root, write_store(root / "brain_atlas")


def test_a_perfect_model_is_perfect_and_its_controls_are_not(store: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    root, samples = store
    model = PaperModel(samples)
    scores = evaluate(model, TASKS, tmp_path, roots=[root], resamples=200)
    assert scores == json.loads((tmp_path / "scores.json").read_text())
    assert set(scores["provenance"]) == {"model", "model_hash", "data_hash", "data", "seed", "limit", "versions"}
    assert scores["provenance"]["data"] == [{"name": "brain_atlas", "version": "0", "licence": "none"}]
    assert scores["excluded"] == []
    for name in TASKS:
        entry = scores["tasks"][name]
        metric = entry["primary"]
        assert (entry["n"], entry["patients"], entry["version"], entry["unparsed"]) == (24, 12, "1.0", 0)
        assert entry["metrics"][metric]["value"] > (0.9 if name.endswith("rec") else 0.999)  # box text has 1 % steps
        assert set(entry["controls"]) == {"blank_image", "shuffled_image", "question_only", "majority"}
        if name.endswith("reg"):  # asks about a box, which has no place without its picture
            assert entry["controls"].pop("question_only") == {}
            assert sum(entry["not_applicable"]["question_only"].values()) == 24
        for control in entry["controls"].values():
            assert set(control) == set(entry["metrics"])
            assert set(control[metric]) == {"value", "low", "high"}
            assert control[metric]["low"] <= control[metric]["value"] <= control[metric]["high"]
            assert control[metric]["value"] < 0.95
    assert (tmp_path / "report.html").is_file()


def test_answers_never_reach_the_model_and_pictures_are_shared(store: tuple[Path, list[Sample]]) -> None:
    root, samples = store
    model = PaperModel(samples)
    evaluate(model, TASKS, roots=[root], resamples=10)
    asked = [sample for batch in model.asked for sample in batch]
    assert all(message.role != "assistant" for sample in asked for message in sample.messages)
    for batch in model.asked:
        keys = [sample.media_key for sample in batch if sample.media]
        changes = sum(a != b for a, b in itertools.pairwise(keys))
        assert changes == max(len(set(keys)) - 1, 0)  # questions on one picture stand side by side
    blank = [sample for sample in asked if sample.media and sample.media[0].blank]
    assert len(blank) < len(samples) / 2  # equal questions on a blank picture are asked once


def test_every_answer_is_kept(store: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    root, samples = store
    scores = evaluate(PaperModel(samples, errs=0.3), TASKS, tmp_path, roots=[root], resamples=10)
    records = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    count = Counter(r["control"] for r in records)
    for condition in ("", "blank_image", "shuffled_image", "majority"):
        assert count[condition] == len(samples)
    assert count["question_only"] == len(samples) - 24  # questions on a box are not asked without its picture
    side = [r for r in records if r["task"] == "brain_atlas/side" and r["control"] == ""]
    mean = sum(r["scores"]["accuracy_strict"] for r in side) / len(side)
    assert scores["tasks"]["brain_atlas/side"]["metrics"]["accuracy_strict"]["value"] == pytest.approx(mean)
    assert {r["question"] for r in side} == {"Left or right?"}
    named = next(r for r in records if r["task"] == "brain_atlas/reg")
    assert named["question"] == "Name [box]."
    assert len(named["question_boxes"][0]) == 4
    shuffled = {r["id"]: r for r in records if r["control"] == "shuffled_image"}
    patient = {sample.media_key[0]: sample.patient for sample in samples}
    assert all(patient[r["media"][0]] != r["patient"] for r in shuffled.values())
    assert all(Path(path).is_file() for r in records for path in r["media"])


def test_seed_and_batch_size(store: tuple[Path, list[Sample]]) -> None:
    root, samples = store

    def run(**options: int) -> dict:
        return evaluate(PaperModel(samples, errs=0.3), TASKS, roots=[root], resamples=50, **options)["tasks"]

    assert run() == run(batch_size=7)
    assert run() != run(seed=1)


def test_limit_takes_the_same_patients_in_every_task(store: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    root, samples = store
    scores = evaluate(PaperModel(samples), TASKS, tmp_path, roots=[root], limit=6, resamples=10)
    assert {entry["n"] for entry in scores["tasks"].values()} == {6}
    records = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    patients = [{r["patient"] for r in records if r["task"] == task} for task in TASKS]
    assert all(found == patients[0] for found in patients)
    assert len(patients[0]) == 3


def test_broken_samples_are_listed_and_the_rest_is_scored(store: tuple[Path, list[Sample]]) -> None:
    root, samples = store
    wrong = [s.id for s in samples if s.task == "brain_atlas/side"][:3]
    scores = evaluate(PaperModel(samples, broken=wrong), TASKS, roots=[root], resamples=10)
    assert scores["tasks"]["brain_atlas/side"]["n"] == 21
    assert scores["tasks"]["brain_atlas/choice"]["n"] == 24
    assert {one["id"] for one in scores["excluded"]} == set(wrong)
    assert all("cut off" in one["reason"] for one in scores["excluded"])
    none = evaluate(
        PaperModel(samples, broken=[s.id for s in samples if s.task == "brain_atlas/side"]), TASKS[0], roots=[root]
    )
    assert none["tasks"]["brain_atlas/side"]["n"] == 0
    assert none["tasks"]["brain_atlas/side"]["metrics"] == {}
    assert pooled(none) == {}
    print_table(none)


def test_evaluations_of_several_models_are_joined(store: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    root, samples = store
    first = evaluate(PaperModel(samples), TASKS[0], out=tmp_path / "a", roots=[root], resamples=20)
    second = evaluate(PaperModel(samples, errs=0.5), TASKS[1:], out=tmp_path / "b", roots=[root], resamples=20)
    joined = join([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert joined == json.loads((tmp_path / "scores.json").read_text())
    assert joined["tasks"] == json.loads(json.dumps({**first["tasks"], **second["tasks"]}))
    assert joined["provenance"]["parts"] == [first["provenance"], second["provenance"]]
    assert (tmp_path / "predictions.jsonl").read_text() == "".join(
        (tmp_path / part / "predictions.jsonl").read_text() for part in "ab"
    )
    assert "<html" in (tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match="share tasks: brain_atlas/side"):
        join([tmp_path / "a", tmp_path / "a"], tmp_path)


def test_one_id_in_two_sources_excludes_the_broken_one_only() -> None:
    class Strict(PaperModel):
        def generate(self, samples: Sequence[Sample], max_new_tokens: int, temperature: float) -> list[str]:
            for sample in samples:
                if sample.media_key == ("bad.png",):
                    raise SampleError("missing", sample.id, "bad.png")
            return ["fine" for _ in samples]

    settings = Generation()
    asked = [{"type": "image", "path": "good.png"}, {"type": "image", "path": "bad.png"}]
    prompts = [Sample.from_dict({"id": "0", "messages": [{"role": "user", "content": [image]}]}) for image in asked]
    answered = dict(open_engine(Strict([])).answer(prompts, settings))
    assert answered[0] == "fine" and isinstance(answered[1], SampleError) and len(answered) == 2


def test_broken_lines_of_a_store_are_listed(tmp_path: Path) -> None:
    samples = write_store(tmp_path / "brain_atlas")
    for split in ("test", "train"):
        file = tmp_path / "brain_atlas" / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rec = [row for row in rows if row["task"] == "brain_atlas/rec"]
        rec[0]["messages"][0]["content"][0]["path"] = "../outside.png"
        rec[1]["messages"][0]["content"][0]["path"] = "images/missing.png"
        rec[2]["messages"][1]["content"] = [{"type": "text", "text": "no box"}]
        rec[3]["id"] = rec[4]["id"]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wrong = f"{samples[0].meta.patient}-1-brain_atlas/rec"  # the picture is missed by the model, not by the store
    scores = evaluate(PaperModel(samples, broken=[wrong]), "brain_atlas/rec", roots=[tmp_path], resamples=10)
    assert scores["tasks"]["brain_atlas/rec"]["n"] == 24 - 4
    reasons = [one["reason"] for one in scores["excluded"]]
    for reason in ("leaves the given folders", "cut off", "no true answer", "occurs twice"):
        assert sum(reason in text for text in reasons) == 1, reasons
    assert scores["tasks"]["brain_atlas/rec"]["controls"]["majority"]["iou_mean"]["value"] > 0


def test_answers_that_say_nothing_score_nothing_and_are_counted(store: tuple[Path, list[Sample]]) -> None:
    root, samples = store
    model = PaperModel(samples)
    model.generate = lambda samples, **options: ["I cannot tell"] * len(samples)  # type: ignore[method-assign]
    tasks = evaluate(model, ["brain_atlas/choice", "brain_atlas/rec"], roots=[root], resamples=10)["tasks"]
    for entry in tasks.values():
        assert entry["unparsed"] == entry["n"] == 24
        assert entry["metrics"][entry["primary"]] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_majority_knows_the_training_answers_only(tmp_path: Path) -> None:
    samples = write_store(tmp_path / "brain_atlas")
    train = tmp_path / "brain_atlas" / "train.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    for row in rows:
        if row["task"] == "brain_atlas/reg":
            row["messages"][1]["content"] = [{"type": "text", "text": "cerebellum"}]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = evaluate(PaperModel(samples), "brain_atlas/reg", tmp_path / "out", roots=[tmp_path], resamples=10)
    assert scores["tasks"]["brain_atlas/reg"]["controls"]["majority"]["accuracy_strict"]["value"] == 0
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert {r["answer"] for r in map(json.loads, lines) if r["control"] == "majority"} == {"cerebellum"}
    train.unlink()
    scores = evaluate(PaperModel(samples), "brain_atlas/reg", roots=[tmp_path], resamples=10)
    assert scores["tasks"]["brain_atlas/reg"]["controls"]["majority"]["accuracy_strict"]["value"] == 0.5


def test_pooled_accuracy_and_the_table(store: tuple[Path, list[Sample]], capsys: pytest.CaptureFixture[str]) -> None:
    root, samples = store
    scores = evaluate(PaperModel(samples, errs=0.3), TASKS, roots=[root], resamples=50)
    side, choice = (scores["tasks"][name]["metrics"]["accuracy_strict"]["value"] for name in TASKS[:2])
    overall = pooled(scores)["brain_atlas"]
    assert overall["score"] == pytest.approx((side + choice) / 2)
    assert overall["n"] == 48
    print_table(scores)
    text = capsys.readouterr().out
    assert headlines(scores)[0] in text
    for task in load_tasks(TASKS):
        assert task.title in text
    for word in ("95 % int.", "blank", "shuffled", "majority", f"{100 * side:.1f}"):
        assert word in text


def test_a_missing_source_is_explained(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="brain_atlas/side"):
        evaluate(PaperModel([]), "brain_atlas/side", roots=[tmp_path])
