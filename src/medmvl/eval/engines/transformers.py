"""Engine `transformers`: any image-text-to-text checkpoint on disk, through its own processor and chat template."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    PROCESSOR_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils import is_torchvision_available

from medmvl import __version__
from medmvl.core.boxes import BOX_FORMATS, Coords, box_format_name
from medmvl.core.schema import Sample, SampleError
from medmvl.eval.engines.chat import Chat, Continuation, Prompt
from medmvl.eval.engines.engine import Answered, EngineError, Opening
from medmvl.eval.engines.pictures import BOXES, SLICES, Pictures, read_boxes
from medmvl.eval.task import Generation

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HASHED = (".safetensors", ".json", ".jinja", ".model", ".txt")
_OURS = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class _Scored:
    """One option of one prompt."""

    place: int
    option: int
    prompt: Prompt
    continuation: Continuation


class TransformersEngine:
    """A checkpoint of transformers.

    Answers are plain greedy ones (or drawn at the asked temperature, each sample from its own stream): penalties and
    samplers that a checkpoint's generation_config recommends are not applied, its end tokens are. Greedy answers do not
    depend on `rows`.

    Args:
        folder: of the checkpoint: config.json, *.safetensors, the processor's files and chat_template.jinja.
        device: where the model goes.
        dtype: of the weights.
        rows: answers written, or options ranked, at the same time.
        slices, boxes: how it sees volumes and boxes; see `pictures.Pictures`.

    Raises:
        EngineError: no such folder, not safetensors, code of its own, weights that are missing, no processor, or no
            chat template that shows pictures.
        ValueError: a setting out of range.
    """

    remote = False
    asks = True

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        rows: int = 8,
        slices: int = SLICES,
        boxes: str = BOXES,
    ) -> None:
        if dtype not in _DTYPES or rows < 1:
            raise ValueError(f"dtype is one of {', '.join(_DTYPES)} and rows at least 1; got {dtype!r} and {rows}")
        self._slices, self._rows = slices, rows
        self._boxes = BOX_FORMATS[box_format_name(boxes)]
        Pictures(slices, self._boxes)  # complains about what is no number of slices, before anything is loaded
        folder = Path(folder)
        config = _config(folder)
        self._chat = Chat(_processor(folder, config), str(folder))
        self._model = _model(folder, _DTYPES[dtype]).to(device).eval()
        self._limit: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self._stops = sorted(self._chat.stops | _ends(self._model.generation_config))
        # What a call of `generate` leaves open it takes from here, penalties included.
        self._model.generation_config = GenerationConfig()
        self._takes_some_logits = True
        self.name = f"transformers:{folder}"
        self.hash = _hash(folder, [dtype, slices, boxes])
        self.identity = f"{self.hash} {__version__} {version('transformers')}"

    def answer(self, prompts: Sequence[Sample], settings: Generation) -> Answered:
        """See `Engine.answer`."""
        pictures = Pictures(self._slices, self._boxes)
        together = 1 if settings.temperature else self._rows  # a draw must not depend on its neighbours
        for start in range(0, len(prompts), together):
            asked: dict[int, Prompt] = {}
            for place in range(start, min(start + together, len(prompts))):
                try:
                    asked[place] = self._chat.prompt(pictures.turns(prompts[place]), prompts[place].id)
                except SampleError as error:
                    yield place, error
            for group in _by_pictures(asked):
                yield from self._generate(group, settings)

    def likelihoods(
        self, prompts: Sequence[Sample], options: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float] | SampleError]]:
        """See `Engine.likelihoods`: the sum over the tokens of the answer and the mark that ends it.

        The prompt is computed for every option anew.
        """
        pictures = Pictures(self._slices, self._boxes)
        for place, (sample, own) in enumerate(zip(prompts, options, strict=True)):
            try:
                turns = pictures.turns(sample)
                prompt = self._chat.prompt(turns, sample.id)
                jobs = [
                    _Scored(place, number, prompt, self._chat.answered(turns, prompt, option))
                    for number, option in enumerate(own)
                ]
                yield (
                    place,
                    [
                        score
                        for start in range(0, len(jobs), self._rows)
                        for score in self._score(jobs[start : start + self._rows])
                    ],
                )
            except SampleError as error:
                yield place, error

    def boxes(self, text: str, sample: Sample) -> Sequence[Coords]:
        """See `Engine.boxes`."""
        return read_boxes(text, sample, self._boxes)

    @torch.no_grad()
    def _generate(self, asked: dict[int, Prompt], settings: Generation) -> Iterator[tuple[int, str | SampleError]]:
        """Yield the answers to prompts with equally many pictures; what one of them suffers loses no other."""
        try:
            inputs = self._inputs([prompt.text for prompt in asked.values()], list(asked.values()), "left")
        except SampleError as error:
            if len(asked) == 1:
                yield from ((place, error) for place in asked)
                return
            for place, prompt in asked.items():
                yield from self._generate({place: prompt}, settings)
            return
        lengths = inputs["attention_mask"].sum(dim=1)
        start = inputs["input_ids"].shape[1]
        criteria = [] if self._limit is None else [_Room(lengths, start, self._limit)]
        with torch.random.fork_rng(devices=[]) if settings.temperature else torch.no_grad():
            if settings.temperature:
                (prompt,) = asked.values()
                torch.manual_seed(int.from_bytes(hashlib.sha256(prompt.id.encode()).digest()[:7], "big"))
            ids = self._run(
                self._model.generate,
                **inputs,
                generation_config=self._settings(settings),
                stopping_criteria=StoppingCriteriaList(criteria),
            )
        for place, row, length in zip(asked, ids[:, start:].tolist(), lengths.tolist(), strict=True):
            yield place, self._decode(row if self._limit is None else row[: self._limit - length])

    def _settings(self, settings: Generation) -> GenerationConfig:
        drawn = {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
        return GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            num_beams=1,
            eos_token_id=list(self._stops),
            pad_token_id=self._chat.tokenizer.pad_token_id,
            **(drawn if settings.temperature else {"do_sample": False}),
        )

    def _decode(self, ids: Sequence[int]) -> str:
        end = next((place for place, token in enumerate(ids) if token in self._stops), len(ids))
        decode = self._chat.tokenizer.decode
        return decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    @torch.no_grad()
    def _score(self, jobs: Sequence[_Scored]) -> list[float]:
        """Return the log-likelihoods of options that share a number of pictures."""
        inputs = self._inputs([job.continuation.text for job in jobs], [job.prompt for job in jobs], "right")
        ids, lengths = inputs["input_ids"], inputs["attention_mask"].sum(dim=1).tolist()
        said = []
        for job, length in zip(jobs, lengths, strict=True):
            first = length - job.continuation.behind
            said.append(range(first, first + job.continuation.counted))
        needed = sorted({place - 1 for own in said for place in own})
        logits = self._logits(inputs, needed)
        column = {place: number for number, place in enumerate(needed)}
        scores = []
        for row, own in enumerate(said):
            told = logits[row, [column[place - 1] for place in own]].float().log_softmax(dim=-1)
            scores.append(told[range(len(own)), ids[row, list(own)]].double().sum().item())
        return scores

    def _logits(self, inputs: BatchFeature, needed: Sequence[int]) -> Tensor:
        """Return the logits [B, n, vocabulary] at the needed places, and no others where the model can do so."""
        places = torch.tensor(needed, device=self._model.device)
        if self._takes_some_logits:
            try:
                logits = self._run(self._model, **inputs, use_cache=False, logits_to_keep=places).logits
            except TypeError:  # its `forward` has no such argument
                self._takes_some_logits = False
            else:
                return logits if logits.shape[1] == len(needed) else logits[:, places]
        return self._run(self._model, **inputs, use_cache=False).logits[:, places]

    def _inputs(self, texts: Sequence[str], prompts: Sequence[Prompt], side: str) -> BatchFeature:
        """Return inputs on the model's device.

        Raises:
            SampleError: the processor cannot take one of them, or it has more tokens than the model has positions; it
                is named if it is alone.
        """
        name = prompts[0].id
        try:
            inputs = self._chat.inputs(texts, [prompt.pictures for prompt in prompts], side)
        except (ValueError, TypeError, IndexError, KeyError, RuntimeError) as error:
            raise SampleError(f"its processor cannot take it: {error}", name) from error
        longest = int(inputs["attention_mask"].sum(dim=1).max())
        if self._limit is not None and longest >= self._limit:
            raise SampleError(
                f"{longest} tokens are more than the model's {self._limit} positions; show less (slices, shots)", name
            )
        return inputs.to(self._model.device, dtype=self._model.dtype)

    def _run(self, call: Any, **inputs: Any) -> Any:
        try:
            return call(**inputs)
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"{self.name}: out of memory with {len(inputs['input_ids'])} prompts at once; give a smaller rows"
            ) from error


class _Room(StoppingCriteria):
    """Ends a row where the model has no more positions.

    Args:
        lengths: int64 [B], tokens of each prompt.
        start: columns of the prompts, padding included.
        limit: positions that there are.
    """

    def __init__(self, lengths: Tensor, start: int, limit: int) -> None:
        self._lengths, self._start, self._limit = lengths, start, limit

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return self._lengths + (input_ids.shape[1] - self._start) >= self._limit


def open_transformers(
    address: str,
    opening: Opening,
    boxes: str = BOXES,
    slices: int = SLICES,
    rows: int = 8,
    dtype: str = "float32",
) -> TransformersEngine:
    """Open a checkpoint's folder; see `TransformersEngine`."""
    return TransformersEngine(address, opening.device, dtype, rows, slices, boxes)


def _config(folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        raise EngineError(
            f"{folder} is no checkpoint of transformers: there is no config.json in it. Give the folder of a "
            "downloaded one; names of a hub are not downloaded"
        )
    if not any(folder.glob("*.safetensors")):
        raise EngineError(
            f"{folder} holds no *.safetensors. Weights in pickle files (*.bin, *.pt) can run code and are not read; "
            "convert them"
        )
    try:
        return AutoConfig.from_pretrained(folder, **_OURS)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(
            f"{folder}: {_first_line(error)}. Only architectures that transformers itself knows are run, never code "
            "that comes with a checkpoint; take a converted one, or evaluate its answers with predictions:FILE"
        ) from error


def _processor(folder: Path, config: PreTrainedConfig) -> ProcessorMixin:
    try:
        kind = PROCESSOR_MAPPING.get(type(config), None)
        wants_videos = kind is not None and "video_processor" in kind.get_attributes()
        opened = _without_videos(kind) if wants_videos and not is_torchvision_available() else AutoProcessor
        processor = opened.from_pretrained(folder, **_OURS)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        more = "" if is_torchvision_available() else "; some processors need torchvision (pip install torchvision)"
        raise EngineError(f"{folder}: its processor cannot be opened: {_first_line(error)}{more}") from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise EngineError(
            f"{folder} has no processor of pictures and texts (processor_config.json, preprocessor_config.json, "
            "tokenizer.json); copy these files of the published checkpoint"
        )
    return processor


def _without_videos(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Return a processor without its part for videos, which alone needs torchvision; pictures have another way."""

    def get_attributes(cls: type[ProcessorMixin]) -> list[str]:
        return [name for name in super(made, cls).get_attributes() if name != "video_processor"]

    made: type[ProcessorMixin] = type(kind.__name__, (kind,), {"get_attributes": classmethod(get_attributes)})
    return made


def _model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    try:
        model, told = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **_OURS
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise EngineError(f"{folder}: its model cannot be opened: {_first_line(error)}") from error
    if told["missing_keys"]:
        lost = ", ".join(sorted(told["missing_keys"])[:5])
        raise EngineError(f"{folder}: {len(told['missing_keys'])} weights are missing ({lost}); copy it again")
    return model


def _ends(config: GenerationConfig) -> set[int]:
    ends = config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _by_pictures(asked: dict[int, Prompt]) -> list[dict[int, Prompt]]:
    """Return prompts in groups of equally many pictures, which is what processors take side by side."""
    groups: dict[int, dict[int, Prompt]] = defaultdict(dict)
    for place, prompt in asked.items():
        groups[len(prompt.pictures)][place] = prompt
    return list(groups.values())


def _hash(folder: Path, settings: Sequence[Any]) -> str:
    """Return SHA-256 over a checkpoint's files and whatever else decides its answers."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for path in sorted(folder.iterdir()):
        if path.suffix in _HASHED and path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
