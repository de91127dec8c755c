"""Every engine keeps the contract: an answer or a reason for each sample, whoever else is asked, and under one hash."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

import medmvl
import tiny_checkpoints
from chat_families import tokenizer_of
from chat_server import Reply, serving
from medmvl.core.schema import Sample, SampleError
from medmvl.eval.controls import blank
from medmvl.eval.engines.engine import Engine
from medmvl.eval.engines.table import ENGINES, open_engine
from medmvl.eval.metrics.metric import MetricUnavailable
from medmvl.eval.task import Generation

SETTINGS = Generation(max_new_tokens=4)
QUESTIONS = ("Left or right?", "Is there a lesion?", "Where is it?")
Open = Callable[[], Engine]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    found = []
    for number in range(4):
        path = folder / f"{number}.png"
        PillowImage.fromarray(rng.integers(0, 255, (48, 64), np.uint8)).save(path)
        for place, question in enumerate(QUESTIONS):
            content = [{"type": "image", "path": str(path)}, {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}]
            found.append(Sample.from_dict({"id": f"{number}-{place}", "task": "own/vqa", "messages": messages}))
    return found


@pytest.fixture(scope="module")
def lost(samples: list[Sample]) -> Sample:
    """A sample that no engine can answer: its file is gone, and no file of answers knows it."""
    content = [{"type": "image", "path": "/nowhere/gone.png"}, {"type": "text", "text": "Left or right?"}]
    return Sample.from_dict({"id": "lost", "task": "own/vqa", "messages": [{"role": "user", "content": content}]})


def opened_bundle(folder: Path, samples: list[Sample]) -> Iterator[Open]:
    torch.manual_seed(0)
    tokenizer_of("chatml").save_pretrained(folder / "tokenizer")
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llm = {"model_type": "qwen2", "vocab_size": 512, "num_key_value_heads": 1, "initializer_range": 0.3, **width}
    encoder = {"model_type": "siglip_vision_model", "image_size": 64, "patch_size": 32, **width}
    settings = {
        "llm": {"architecture": llm, "tokenizer": str(folder / "tokenizer")},
        "towers": {"image": {"encoder": {"architecture": encoder}, "connector": "linear"}},
    }
    medmvl.Bundle.build(settings).save(folder / "bundle")
    yield lambda: open_engine(folder / "bundle")


def opened_transformers(folder: Path, samples: list[Sample]) -> Iterator[Open]:
    tiny_checkpoints.llava(folder / "llava")
    yield lambda: open_engine(f"transformers:{folder / 'llava'}")


def opened_openai(folder: Path, samples: list[Sample]) -> Iterator[Open]:
    def reply(body: dict[str, Any], before: int) -> Reply:
        return Reply(f"answer {json.dumps(body, sort_keys=True).__hash__() % 1000}")

    with serving(reply) as server:
        yield lambda: open_engine(f"openai:{server.url}#small")


def opened_predictions(folder: Path, samples: list[Sample]) -> Iterator[Open]:
    lines = [
        {"id": s.id, "prediction": f"{s.id} [100, 200, 300, 400]", "likelihoods": {"a": -1, "b": -2}} for s in samples
    ]
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    yield lambda: open_engine(f"predictions:{path}")


OPENED = {
    "bundle": opened_bundle,
    "transformers": opened_transformers,
    "openai": opened_openai,
    "predictions": opened_predictions,
}


@pytest.fixture(scope="module", params=sorted(ENGINES))
def again(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]
) -> Iterator[Open]:
    yield from OPENED[request.param](tmp_path_factory.mktemp(request.param), samples)


@pytest.fixture(scope="module")
def engine(again: Open) -> Engine:
    return again()


def answers(engine: Engine, samples: list[Sample], settings: Generation = SETTINGS) -> list[Any]:
    said = list(engine.answer(samples, settings))
    assert sorted(place for place, _ in said) == list(range(len(samples)))
    return [text for _, text in sorted(said, key=lambda one: one[0])]


def test_it_says_what_it_is(engine: Engine, again: Open) -> None:
    assert isinstance(engine, Engine)
    assert engine.name and isinstance(engine.name, str) and isinstance(engine.hash, str) and engine.hash
    assert isinstance(engine.remote, bool) and isinstance(engine.asks, bool)
    other = again()
    assert (other.name, other.hash) == (engine.name, engine.hash)


def test_an_answer_depends_on_its_sample_alone(engine: Engine, again: Open, samples: list[Sample]) -> None:
    whole = answers(engine, samples)
    assert all(isinstance(text, str) for text in whole) and len(set(whole)) > 1
    assert answers(engine, samples[::-1])[::-1] == whole
    assert [answers(engine, [sample])[0] for sample in samples[:4]] == whole[:4]
    assert answers(again(), samples) == whole
    assert answers(engine, []) == []


def test_a_sample_that_cannot_be_answered_loses_no_other(engine: Engine, samples: list[Sample], lost: Sample) -> None:
    found = answers(engine, [lost, *samples[:3], lost, samples[3]])
    assert isinstance(found[0], SampleError) and found[0].sample_id == "lost" and "'lost'" in str(found[0])
    assert isinstance(found[4], SampleError)
    assert [*found[1:4], found[5]] == answers(engine, samples[:4])


def test_nothing_of_a_blank_picture_is_seen(engine: Engine, samples: list[Sample]) -> None:
    if not engine.asks:
        pytest.skip("answers that were written down are not asked again")
    by_question = {}
    for sample, said in zip(samples, answers(engine, [blank(sample) for sample in samples]), strict=True):
        by_question.setdefault(sample.id[-1], set()).add(said)
    assert all(len(said) == 1 for said in by_question.values())


def test_likelihoods_are_finite_and_never_above_zero(engine: Engine, samples: list[Sample], lost: Sample) -> None:
    asked = [samples[0], lost, samples[4]]
    try:
        found = dict(engine.likelihoods(asked, [["a", "b"], ["a"], ["b"]]))
    except MetricUnavailable as error:
        assert str(error)
        return
    assert sorted(found) == [0, 1, 2]
    assert isinstance(found[1], SampleError)
    assert [len(found[0]), len(found[2])] == [2, 1]
    assert all(math.isfinite(score) and score <= 0 for score in found[0] + found[2])
    assert dict(engine.likelihoods(asked[:1], [["b"]]))[0] == [pytest.approx(found[0][1], rel=1e-5)]


def test_boxes_lie_in_the_file(engine: Engine, samples: list[Sample]) -> None:
    assert list(engine.boxes("there is none", samples[0])) == []
    found = list(engine.boxes("between [10, 20, 30, 40] and [0, 0, 100, 100]", samples[0]))
    assert len(found) == 2
    for x0, y0, x1, y1 in found:
        assert 0 <= x0 <= x1 <= 64 and 0 <= y0 <= y1 <= 48


def test_answers_through_a_file_are_the_same(tmp_path: Path, samples: list[Sample]) -> None:
    """What a bundle says, written down and read again: answers, likelihoods and boxes."""
    (again,) = opened_bundle(tmp_path, samples)
    bundle = again()
    options = [["left", "right"]] * len(samples)
    said, scored = answers(bundle, samples), dict(bundle.likelihoods(samples, options))
    path = tmp_path / "answers.jsonl"
    with path.open("w") as file:
        for place, sample in enumerate(samples):
            line = {"id": sample.id, "task": sample.task, "prediction": said[place]}
            likelihoods = dict(zip(options[place], scored[place], strict=True))
            file.write(json.dumps({**line, "likelihoods": likelihoods}) + "\n")
    engine = open_engine(f"predictions:{path}", boxes="0-100")
    assert answers(engine, samples) == said
    assert dict(engine.likelihoods(samples, options)) == scored
    text = "[10, 20, 30, 40]"
    assert list(engine.boxes(text, samples[0])) == [pytest.approx(box) for box in bundle.boxes(text, samples[0])]
