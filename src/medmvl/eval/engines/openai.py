"""Engine `openai`: a model behind any endpoint that speaks OpenAI's chat protocol, such as vLLM, SGLang or Ollama."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from medmvl.core.boxes import BOX_FORMATS, Coords, box_format_name
from medmvl.core.schema import Sample, SampleError
from medmvl.eval.engines.endpoint import Endpoint, Messages
from medmvl.eval.engines.engine import Answered, Opening
from medmvl.eval.engines.pictures import BOXES, SLICES, Pictures, Turn, read_boxes
from medmvl.eval.metrics.metric import MetricUnavailable
from medmvl.eval.task import Generation


class OpenAIEngine:
    """A model behind an endpoint.

    Args:
        endpoint: where it is.
        slices, boxes: how it sees volumes and boxes; see `pictures.Pictures`.
    """

    asks = True

    def __init__(self, endpoint: Endpoint, slices: int = SLICES, boxes: str = BOXES) -> None:
        self._endpoint, self._slices = endpoint, slices
        self._boxes = BOX_FORMATS[box_format_name(boxes)]
        Pictures(slices, self._boxes)  # complains about what is no number of slices, before anything is asked
        self.name, self.remote = f"openai:{endpoint.name}", endpoint.remote
        # The weights behind an endpoint cannot be seen: answers are re-used as long as its model keeps its name.
        self.hash = hashlib.sha256(json.dumps([endpoint.url, endpoint.model, slices, boxes]).encode()).hexdigest()
        self.identity = self.hash

    def answer(self, prompts: Sequence[Sample], settings: Generation) -> Answered:
        """See `Engine.answer`."""
        pictures = Pictures(self._slices, self._boxes)
        requests = [partial(_messages, pictures, prompt) for prompt in prompts]
        for place, said in self._endpoint.each(requests, settings.max_new_tokens, settings.temperature):
            if isinstance(said, ValueError) and not isinstance(said, SampleError):
                said = SampleError(str(said), prompts[place].id)
            yield place, said

    def likelihoods(
        self, prompts: Sequence[Sample], options: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float] | SampleError]]:
        """Raise `MetricUnavailable`: the protocol does not tell how likely a given answer is."""
        raise MetricUnavailable(
            f"{self.name}: a chat endpoint does not tell how likely a given answer is; evaluate the checkpoint itself, "
            "as a bundle or with transformers:FOLDER"
        )

    def boxes(self, text: str, sample: Sample) -> Sequence[Coords]:
        """See `Engine.boxes`."""
        return read_boxes(text, sample, self._boxes)


def open_openai(
    address: str,
    opening: Opening,
    boxes: str = BOXES,
    slices: int = SLICES,
    concurrency: int = 8,
    retries: int = 5,
    timeout: float = 120.0,
    backoff: float = 1.0,
    token_limit: str = "max_tokens",
) -> OpenAIEngine:
    """Open "URL#MODEL", such as "http://localhost:8000/v1#llava"; see `Endpoint` and `pictures.Pictures`.

    Raises:
        EngineError: no endpoint's URL, no model, or another machine that is not allowed.
        ValueError: a setting out of range.
    """
    url, _, model = address.partition("#")
    endpoint = Endpoint(
        url, model, opening.allow_remote, concurrency, retries, timeout, backoff=backoff, token_limit=token_limit
    )
    return OpenAIEngine(endpoint, slices, boxes)


def _messages(pictures: Pictures, prompt: Sample) -> Messages:
    return [{"role": turn.role, "content": _content(turn)} for turn in pictures.turns(prompt)]


def _content(turn: Turn) -> str | list[dict[str, Any]]:
    if not turn.pictures:
        return turn.text
    return [
        {"type": "text", "text": piece}
        if isinstance(piece, str)
        else {"type": "image_url", "image_url": {"url": piece.data_url}}
        for piece in turn.content
    ]
