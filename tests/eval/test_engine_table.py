"""What a target names, and models in Python that answer as bundles do."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from medmvl.bundle import BundleError
from medmvl.core.lookup import LookupNameError
from medmvl.core.schema import Sample, SampleError
from medmvl.eval.engines.bundle import BundleEngine
from medmvl.eval.engines.engine import Engine, EngineError, Opening
from medmvl.eval.engines.openai import OpenAIEngine
from medmvl.eval.engines.predictions import PredictionsEngine
from medmvl.eval.engines.table import ENGINES, open_engine
from medmvl.eval.metrics.metric import MetricUnavailable
from medmvl.eval.task import Generation
from paper_model import PaperModel, write_store

GREEDY = Generation()


class Parrot:
    """Answers with the sample's id; some ids it cannot answer."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        self.processor = SimpleNamespace(boxes_from_text=lambda text, sample: [(1.0, 2.0, 3.0, 4.0)])
        self.broken, self.calls = set(broken), []

    def generate(self, samples: Sequence[Sample], max_new_tokens: int, temperature: float) -> list[str]:
        self._check(samples)
        self.calls.append(len(samples))
        return [f"{sample.id} {max_new_tokens} {temperature:g}" for sample in samples]

    def score_options_each(self, samples: Sequence[Sample], options: Sequence[Sequence[str]]) -> list[list[float]]:
        self._check(samples)
        return [[-float(len(option)) for option in own] for own in options]

    def _check(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if sample.id in self.broken:
                raise SampleError("broken", sample.id, next(iter(sample.media_key), None))


def asked(name: str, path: str = "") -> Sample:
    parts = [{"type": "image", "path": path}] if path else []
    content = [*parts, {"type": "text", "text": "What?"}]
    return Sample.from_dict({"id": name, "messages": [{"role": "user", "content": content}]})


def test_a_model_in_python_is_wrapped() -> None:
    engine = open_engine(Parrot())
    assert (engine.name, engine.hash, engine.remote, engine.asks) == ("Parrot", "", False, True)
    settings = Generation(max_new_tokens=5, temperature=0.5)
    assert list(engine.answer([asked("a"), asked("b")], settings)) == [(0, "a 5 0.5"), (1, "b 5 0.5")]
    assert engine.boxes("anything", asked("a")) == [(1.0, 2.0, 3.0, 4.0)]
    assert open_engine(engine) is engine
    assert isinstance(engine, Engine)


def test_a_broken_sample_loses_no_other() -> None:
    prompts = [asked(f"{number}") for number in range(150)]
    model = Parrot(broken=["3", "70", "149"])
    found = dict(open_engine(model).answer(prompts, GREEDY))
    assert sorted(found) == list(range(150))
    assert {place for place, said in found.items() if isinstance(said, SampleError)} == {3, 70, 149}
    assert all(said.split()[0] == str(place) for place, said in found.items() if isinstance(said, str))
    scored = dict(open_engine(model).likelihoods(prompts, [["a" * (1 + k % 3), "b"] for k in range(150)]))
    assert {place for place, said in scored.items() if isinstance(said, SampleError)} == {3, 70, 149}
    assert all(said == [-1.0 - place % 3, -1.0] for place, said in scored.items() if isinstance(said, list))


def test_of_two_samples_with_one_id_the_file_at_fault_decides() -> None:
    class Picky(Parrot):
        def _check(self, samples: Sequence[Sample]) -> None:
            for sample in samples:
                if "bad.png" in sample.media_key:
                    raise SampleError("broken", sample.id, "bad.png")

    found = dict(open_engine(Picky()).answer([asked("same", "good.png"), asked("same", "bad.png")], GREEDY))
    assert isinstance(found[0], str) and isinstance(found[1], SampleError)


def test_errors_that_name_no_sample_are_not_swallowed() -> None:
    class Odd(Parrot):
        def generate(self, samples: Sequence[Sample], max_new_tokens: int, temperature: float) -> list[str]:
            raise SampleError("who?", "nobody")

    with pytest.raises(SampleError, match="nobody"):
        list(open_engine(Odd()).answer([asked("a")], GREEDY))

    class Short(Parrot):
        def generate(self, samples: Sequence[Sample], max_new_tokens: int, temperature: float) -> list[str]:
            return ["one"]

    with pytest.raises(ValueError, match="1 answers to 2 samples"):
        list(open_engine(Short()).answer([asked("a"), asked("b")], GREEDY))


def test_a_model_without_likelihoods_says_so(tmp_path: Path) -> None:
    samples = write_store(tmp_path / "brain_atlas", patients=1)
    engine = open_engine(PaperModel(samples))
    with pytest.raises(MetricUnavailable, match="score_options_each"):
        engine.likelihoods(samples, [["a"]] * len(samples))
    assert len(dict(engine.answer([sample.prompt() for sample in samples], GREEDY))) == len(samples)


def test_what_answers_nothing_is_no_target() -> None:
    for wrong in (object(), 7, None, SimpleNamespace(generate=lambda: 0)):
        with pytest.raises(ValueError, match="cannot be evaluated"):
            open_engine(wrong)
    with pytest.raises(ValueError, match="boxes: settings of an engine that is opened by its address"):
        open_engine(Parrot(), boxes="qwen")


def predictions(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"id": "a", "prediction": "x"}\n')
    return path


def test_targets_name_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    predictions(tmp_path / "odd:name" / "a#b.jsonl")
    assert isinstance(open_engine("predictions:odd:name/a#b.jsonl"), PredictionsEngine)
    assert isinstance(open_engine("openai:http://localhost:8000/v1#m"), OpenAIEngine)
    with pytest.raises(EngineError, match="no checkpoint of transformers"):
        open_engine("transformers:nowhere")
    for target in ("nowhere", "some/folder:with", "/abs/fol:der", r"C:\models\mine", Path("here/there"), "bundle:x:y"):
        with pytest.raises(BundleError, match=re.escape(str(target).removeprefix("bundle:")) + " is no bundle"):
            open_engine(target)


@pytest.mark.parametrize("name", ["predictions:mine", "transformers:mine", "nonsense:mine", "openai:x#y"])
def test_a_path_that_exists_is_never_misread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(BundleError, match=f"{name} is no bundle"):
        open_engine(name)


def test_unknown_engines_are_told_the_nearest_and_all() -> None:
    with pytest.raises(LookupNameError, match="did you mean 'transformers'") as error:
        open_engine("transfomers:/models/llava")
    assert all(name in str(error.value) for name in ENGINES)
    with pytest.raises(LookupNameError, match=r"no engine is called 'http'.*openai:URL#MODEL"):
        open_engine("http://localhost:8000/v1")


def test_an_engine_of_the_users_own_goes_by_its_dotted_path() -> None:
    engine = open_engine("own_engines_of_a_test.engine:opened:of this:place", device="cuda", volume=11)
    assert engine.address == "of this:place"
    assert engine.opening == Opening("cuda") and engine.volume == 11


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_engines_of_a_test"
    package.mkdir()
    (package / "engine.py").write_text(
        "from types import SimpleNamespace\n\n\ndef opened(address, opening, volume=1):\n"
        "    return SimpleNamespace(address=address, opening=opening, volume=volume)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("target", "option", "message"),
    [
        ("predictions:x", "slices", "has no option 'slices'; Options: boxes"),
        ("openai:http://localhost/v1#m", "concurency", "did you mean 'concurrency'"),
        ("bundle:x", "boxes", "a bundle knows how its own boxes are written"),
        ("own_engines_of_a_test.engine:opened:x", "loudness", "Options: volume"),
    ],
)
def test_options_of_other_engines_are_refused(target: str, option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_engine(target, **{option: 1})


def test_a_bundle_keeps_the_name_of_its_folder() -> None:
    assert BundleEngine(Parrot(), "runs/a").name == "runs/a"
