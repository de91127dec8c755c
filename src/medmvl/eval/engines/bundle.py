"""Engine `bundle`: our own models, and anything in Python that answers samples as a bundle does."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from medmvl import __version__
from medmvl.core.boxes import Coords
from medmvl.core.schema import Sample, SampleError
from medmvl.eval.engines.engine import Answered, Opening
from medmvl.eval.metrics.metric import MetricUnavailable
from medmvl.eval.task import Generation

_AT_ONCE = 256  # samples of one call, whose answers are kept when a later call fails


@runtime_checkable
class Answering(Protocol):
    """What a bundle can do, as far as an evaluation needs it.

    `processor.boxes_from_text(text, sample)` returns the boxes that an answer names, in the frame of the sample's file.
    Attributes that it may have beside these: `hash` (names its weights), `generate_each` and `score_options_each` (see
    `Bundle`).
    """

    processor: Any

    def generate(self, samples: Sequence[Sample], max_new_tokens: int, temperature: float) -> list[str]: ...


class BundleEngine:
    """A model that answers samples as they are.

    Args:
        model: a `Bundle`, or anything like one.
        name: what to call it; None: the name of its class.
    """

    remote = False
    asks = True

    def __init__(self, model: Answering, name: str | None = None) -> None:
        self._model = model
        self.processor = model.processor
        self.name = name or type(model).__name__
        self.hash: str = getattr(model, "hash", "")
        self.identity = _identity(model, self.hash)

    def answer(self, prompts: Sequence[Sample], settings: Generation) -> Answered:
        """See `Engine.answer`."""
        wanted = settings.model_dump()
        if (each := getattr(self._model, "generate_each", None)) is not None:
            yield from each(prompts, **wanted)
            return
        for places in _chunks(len(prompts)):
            yield from _each(
                prompts, places, lambda left: self._model.generate([prompts[place] for place in left], **wanted)
            )

    def likelihoods(
        self, prompts: Sequence[Sample], options: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float] | SampleError]]:
        """See `Engine.likelihoods`; the end mark of an answer counts.

        Raises:
            MetricUnavailable: the model is no bundle and has no `score_options_each`.
        """
        score = getattr(self._model, "score_options_each", None)
        if score is None:
            raise MetricUnavailable(f"{self.name} has no score_options_each(samples, options), which ranks answers")
        return self._likelihoods(score, prompts, options)

    def _likelihoods(
        self, score: Any, prompts: Sequence[Sample], options: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float] | SampleError]]:
        for places in _chunks(len(prompts)):
            yield from _each(
                prompts,
                places,
                lambda left: score([prompts[place] for place in left], [options[place] for place in left]),
            )

    def boxes(self, text: str, sample: Sample) -> Sequence[Coords]:
        """See `Engine.boxes`."""
        return self.processor.boxes_from_text(text, sample)


def open_bundle(address: str, opening: Opening) -> BundleEngine:
    """Open the bundle in a folder.

    Raises:
        BundleError: there is none, or it must not or cannot be loaded.
    """
    from medmvl.bundle import load

    return BundleEngine(load(Path(address), device=opening.device, allow_code=opening.allow_code), address)


def _identity(model: Answering, weights: str) -> str:
    """Return what names all that decides an answer of a bundle; "" where a model does not tell its weights."""
    fingerprint, config = getattr(model.processor, "fingerprint", None), getattr(model, "config", None)
    if not weights or fingerprint is None or config is None:
        return weights
    dtype = next(model.model.parameters()).dtype  # type: ignore[attr-defined]
    parts = [weights, fingerprint(), config.model_dump_json(), str(dtype), __version__]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _chunks(count: int) -> Iterator[range]:
    for start in range(0, count, _AT_ONCE):
        yield range(start, min(start + _AT_ONCE, count))


def _each(
    prompts: Sequence[Sample], places: Sequence[int], answers_to: Callable[[list[int]], Sequence[Any]]
) -> Iterator[tuple[int, Any]]:
    """Yield (place, what a function of places says to it); a sample that the function refuses loses no other."""
    left = list(places)
    while left:
        try:
            said = answers_to(left)
        except SampleError as error:
            same = [place for place in left if prompts[place].id == error.sample_id]
            if not same:
                raise
            # Two sources may use one id: the file at fault tells them apart.
            named = [place for place in same if str(error.path) in prompts[place].media_key] or same
            yield from ((place, error) for place in named)
            left = [place for place in left if place not in named]
            continue
        if len(said) != len(left):
            raise ValueError(f"the model gave {len(said)} answers to {len(left)} samples; give one per sample")
        yield from zip(left, said, strict=True)
        return
