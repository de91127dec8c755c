"""What every engine does: it answers samples, each for itself, so that one that cannot be answered loses no other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from medmvl.core.boxes import Coords
from medmvl.core.schema import Sample, SampleError
from medmvl.eval.task import Generation

Answered = Iterator[tuple[int, str | SampleError]]
"""(place of the sample in the call, its answer or what is wrong with it), each place once, in any order."""


class EngineError(ValueError):
    """An engine that cannot go on: an endpoint that fails for good, a file that cannot be read, a missing package.

    What was answered before is kept; the same evaluation started again asks for the rest.
    """


@dataclass(frozen=True)
class Opening:
    """What the caller lets an engine do, and where.

    Attributes:
        device: where models go.
        allow_code: packages whose code a bundle may run (see `medmvl.load`).
        allow_remote: questions and pictures may be sent to another machine.
    """

    device: str = "cpu"
    allow_code: Sequence[str] = ()
    allow_remote: bool = False


@runtime_checkable
class Engine(Protocol):
    """What can be evaluated.

    Attributes:
        name: what tables and provenance call it.
        hash: names the model's weights (or the file, or endpoint and model).
        identity: names all that decides an answer: weights, how questions are put to them, versions. Answers are
            re-used only under one identity; "" where nobody knows it, and then they are not.
        remote: answers come from another machine: data that must not leave this one is refused.
        asks: it can be asked anything; False for answers that were written down before, of which only those to the
            questions as they are exist, so that controls and probes make no sense.
    """

    name: str
    hash: str
    identity: str
    remote: bool
    asks: bool

    def answer(self, prompts: Sequence[Sample], settings: Generation) -> Answered:
        """Answer samples that end with a question, as they come; what is yielded is kept even if the rest fails.

        Of a medium marked `blank` the model must see nothing but an even grey, of one marked `mirrored` its image
        in a mirror that swaps left and right.

        Raises:
            EngineError: it cannot go on.
        """
        ...

    def likelihoods(
        self, prompts: Sequence[Sample], options: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float] | SampleError]]:
        """Yield the log-likelihood of each option as the answer to each sample's question.

        Raises:
            MetricUnavailable: this engine knows no likelihoods.
            EngineError: it cannot go on.
        """
        ...

    def boxes(self, text: str, sample: Sample) -> Sequence[Coords]:
        """Return the boxes that an answer names, in the frame of the sample's file."""
        ...
