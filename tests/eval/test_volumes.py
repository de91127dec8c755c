"""Volumes under evaluation: controls, 3D boxes and the report, on the benchmark's own files and a tiny real model."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image as PillowImage

import medmvl
from chat_families import tokenizer_of
from medmvl.core.schema import Sample
from medmvl.data.benchmarks.brain_atlas_3d import build
from medmvl.data.store import SampleStore
from medmvl.eval.metrics.boxes import iou
from medmvl.eval.report import write_report
from medmvl.eval.run import evaluate
from medmvl.eval.task import load_tasks
from medmvl.eval.trial import Trial

TASKS = [f"brain_atlas_3d/{family}" for family in ("contrast", "side", "rec", "reg", "report")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    build(folder / "brain_atlas_3d", patients=60, seed=1, workers=1)
    tokenizer_of("chatml").save_pretrained(folder / "tokenizer")
    return folder


def bundle_of(root: Path, **spec: object) -> medmvl.Bundle:
    torch.manual_seed(0)
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llm = {"model_type": "qwen2", "vocab_size": 512, "num_key_value_heads": 1, **width}
    conv = {"channels": [8, 8, 8], "image_size": 16}
    tower = {
        "encoder": "slices",
        "encoder_options": {"encoder": "conv", "encoder_options": conv, "slices": 4},
        "connector": "average",
        "spec": {"percentile_window": [0.5, 99.5], **spec},
    }
    settings = {"llm": {"architecture": llm, "tokenizer": str(root / "tokenizer")}, "towers": {"volume": tower}}
    return medmvl.Bundle.build(settings)


class Knowing:
    """Answers with the truth, boxes as the processor of a bundle writes them; blind to blank volumes."""

    def __init__(self, samples: list[Sample], processor: object) -> None:
        self._truth = {(sample.media_key, sample.id): sample for sample in samples}
        self.processor = processor
        self.blank: list[Sample] = []

    def generate(self, samples: list[Sample], max_new_tokens: int, temperature: float) -> list[str]:
        self.blank += [sample for sample in samples if sample.media and sample.media[0].blank]
        return [self._say(self._truth.get((s.media_key, s.id))) if self._sees(s) else "" for s in samples]

    @staticmethod
    def _sees(sample: Sample) -> bool:
        return bool(sample.media) and not sample.media[0].blank

    def _say(self, sample: Sample | None) -> str:
        if sample is None:  # another patient's volume
            return "nothing"
        encoded = self.processor.encode(sample)
        labels = encoded.branches[0].labels
        return self.processor.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True)


def test_the_truth_scores_full_marks_through_the_models_own_frame(root: Path, tmp_path: Path) -> None:
    bundle = bundle_of(root, crop_foreground=0.1)
    samples = list(SampleStore(root / "brain_atlas_3d", "test"))
    model = Knowing(samples, bundle.processor)
    scores = evaluate(model, TASKS, tmp_path, roots=[root], resamples=10)
    assert scores["excluded"] == []
    for name, entry in scores["tasks"].items():
        value, controls = entry["metrics"][entry["primary"]]["value"], entry["controls"]
        assert value > (0.85 if name.endswith("rec") else 0.999), name  # box text has 1 % steps
        assert controls["blank_image"][entry["primary"]]["value"] == 0
        # A question about another patient's volume that this patient is asked too has that patient's answer.
        assert controls["shuffled_image"][entry["primary"]]["value"] < value / 2
        assert 0 < controls["majority"][entry["primary"]]["value"] < 0.9
    asked = [(s.messages[0].content[1:], s.media_key) for s in model.blank]
    assert len({question for question, _ in asked}) < len(model.blank) < sum(e["n"] for e in scores["tasks"].values())


def test_the_mean_box_of_volumes_is_one_of_bodies_not_of_files(root: Path) -> None:
    """Parts of one name lie at about the same place in every head, so their mean box fits all of them well."""
    (task,) = load_tasks("brain_atlas_3d/rec")
    trial = Trial.load(task, [root])
    trial.samples = {i: s for i, s in trial.samples.items() if s.meta.boxes[0].label == "frontal lobe"}
    trial.records[""] = [{"id": i} for i in trial.samples]
    trial._training_answers = list  # type: ignore[method-assign]  # the answers of the task itself
    trial.guess()
    assert len(trial.records["majority"]) > 1
    for record in trial.records["majority"]:
        assert iou(record["parsed"], record["reference"]) > 0.5


def test_a_bundle_sees_nothing_of_a_blank_volume_and_reads_questions_in_its_frame(root: Path) -> None:
    bundle = bundle_of(root)
    (sample, *_) = (s for s in SampleStore(root / "brain_atlas_3d", "test") if s.task.endswith("/reg"))
    changed = Sample.from_dict(sample.to_dict() | {"id": "blank"})
    part = changed.messages[0].content[0].model_copy(update={"blank": True})
    message = changed.messages[0].model_copy(update={"content": (part, *changed.messages[0].content[1:])})
    changed = changed.model_copy(update={"messages": (message, changed.messages[1])})
    real, blank = (bundle.processor.encode(one) for one in (sample, changed))
    assert (real.branches[0].ids == blank.branches[0].ids).all()  # the box in the question too
    assert blank.media[0].view.pixels.std() == 0 < real.media[0].view.pixels.std()
    assert bundle.loss([sample]) != bundle.loss([changed])


def test_the_report_shows_slices_with_boxes_and_says_what_cannot_be_shown(root: Path, tmp_path: Path) -> None:
    bundle = bundle_of(root)
    samples = list(SampleStore(root / "brain_atlas_3d", "test"))
    evaluate(Knowing(samples, bundle.processor), TASKS, tmp_path, roots=[root], resamples=10)
    text = (tmp_path / "report.html").read_text()
    pictures = [base64.b64decode(one) for one in re.findall(r'href="data:image/webp;base64,([^"]+)"', text)]
    assert pictures and max(map(len, pictures)) < 30_000
    with PillowImage.open(io.BytesIO(pictures[0])) as picture:
        assert picture.width == 264 and picture.format == "WEBP"
    for kind in ("asked", "true", "predicted"):
        assert len(re.findall(rf'<rect class="box-{kind}"', text)) > 10, kind
    records = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    for record in records:
        record["media"] = [path.replace(".nii.gz", "<b>.nii.gz") for path in record["media"]]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = write_report(tmp_path).read_text()
    assert "&lt;b&gt;.nii.gz: does not exist" in text and "<b>.nii.gz" not in text and "data:image/webp" not in text


def test_a_broken_volume_is_listed_and_the_others_are_asked(root: Path) -> None:
    bundle = bundle_of(root)
    store = SampleStore(root / "brain_atlas_3d", "test")
    path = Path(next(s.media[0].path for s in store if s.task.endswith("/side")))
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        scores = evaluate(bundle, ["brain_atlas_3d/side", "brain_atlas_3d/rec"], roots=[root], resamples=10)
    finally:
        path.write_bytes(whole)
    assert {one["id"].rpartition("-v0-")[0] for one in scores["excluded"] if not one["control"]} == {
        path.name.split("-")[0]
    }
    assert all(str(path) in one["reason"] for one in scores["excluded"] if not one["control"])
    assert all(entry["n"] > 0 for entry in scores["tasks"].values())
