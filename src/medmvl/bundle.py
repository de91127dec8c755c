"""The bundle: a model, how to feed it, and where it came from, as one directory that needs nothing else."""

from __future__ import annotations

import errno
import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import load_torch_model, save_torch_state_dict
from safetensors import SafetensorError
from torch import Tensor
from transformers.initialization import no_init_weights

from medmvl import __version__
from medmvl.core.atomic import atomic_folder
from medmvl.core.boxes import BOX_FORMATS
from medmvl.core.schema import Message, Sample, SampleError
from medmvl.infer import engine
from medmvl.model import tune
from medmvl.model.build import Built
from medmvl.model.build import build as build_model
from medmvl.model.config import ModelConfig
from medmvl.model.vlm import VLM
from medmvl.processing.collate import collate
from medmvl.processing.encoded import IGNORE, Encoded, Media
from medmvl.processing.pack import arrange
from medmvl.processing.processor import Processor, TowerInput
from medmvl.processing.question import QuestionEncoder

FORMAT = 1
MAX_TOKENS = 2048
STATE, PROCESSOR, RECIPE, PROVENANCE = "bundle.json", "processor", "recipe.yaml", "provenance.json"


class BundleError(ValueError):
    """A folder that is no bundle, or one that this version must not or cannot load."""


class Bundle:
    """A vision-language model ready to use: weights, processor and provenance.

    Build one from parts with `Bundle.build`, read one with `Bundle.load` (or `medmvl.load`).

    Attributes:
        model: the `VLM`; `.llm`, and `.towers["image"]` with `.encoder` and `.connector`.
        processor: turns samples into tokens and answers back into text and boxes.
        config: what the model is made of.
        recipe: the resolved recipe that made it, as YAML; None for a bundle built from parts.
        provenance: versions, data and settings it was made with.
    """

    def __init__(
        self,
        model: VLM,
        processor: Processor,
        config: ModelConfig,
        recipe: str | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.processor, self.config = model, processor, config
        self.recipe = recipe
        self.provenance = dict(provenance or {})

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | ModelConfig,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_tokens: int | None = None,
    ) -> Bundle:
        """Assemble a model from an LLM and towers; what has no weights yet (the connectors) is drawn at random.

        Args:
            config: {"llm": PATH_OR_NAME, "towers": {"image": {"encoder": PATH_OR_NAME, "connector": "mlp"}}}, further
                keys as in a recipe's `model`. Defaults: the LLM's own chat template, the encoder's last layer, all of
                its tokens, a connector of two layers.
            device: where the model goes; "meta" builds shapes without weights.
            dtype: of the weights.
            max_tokens: longest sample the processor lets through, media included; by default 2048, or as many as the
                LLM has positions for.

        Raises:
            ConfigError, SourceError, EncoderError: what does not exist or does not fit, and what to do.
            ValueError: `max_tokens` is more than the LLM has positions for.
        """
        from medmvl.core import config as settings

        parsed = config if isinstance(config, ModelConfig) else settings.load(ModelConfig, dict(config))
        built = build_model(parsed, device=device, dtype=dtype)
        if max_tokens is None:
            max_tokens = min(MAX_TOKENS, built.model.longest or MAX_TOKENS)
        built.model.check_max_tokens(max_tokens)
        return cls(built.model, _processor(built, parsed, max_tokens), built.config)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        allow_code: Sequence[str] = (),
    ) -> Bundle:
        """Read a bundle from its directory; nothing outside of it is needed.

        Args:
            path: the directory.
            device: where the model goes.
            dtype: of the weights; fp32 by default.
            allow_code: packages that the bundle may name by dotted path, which runs their code; others are refused.

        Raises:
            BundleError: no bundle, a damaged one, one of a newer format, or one that names code that is not allowed.
        """
        path = Path(path)
        config, state = _read(path, allow_code)
        processor = Processor.load(path / PROCESSOR)
        with no_init_weights():
            model = build_model(config, dtype=dtype, tokenizer=processor.tokenizer).model
            model.llm.tie_weights()  # part of the initialisation that is skipped
            tune.restore(model, state["adapters"])
        _load_weights(model, path, state["tied"])
        recipe = path / RECIPE
        provenance = path / PROVENANCE
        return cls(
            model.to(device).eval(),
            processor,
            config,
            recipe.read_text(encoding="utf-8") if recipe.exists() else None,
            json.loads(provenance.read_text(encoding="utf-8")) if provenance.exists() else None,
        )

    def save(self, path: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> Path:
        """Write the bundle; the directory appears whole or not at all, and replaces a former one at `path`.

        Args:
            path: the directory.
            state_dict: the weights, when they are not in `model` itself (gathered from several devices).

        Raises:
            DiskFullError: no space left; a former bundle there stays as it was.
        """
        weights = dict(self.model.state_dict() if state_dict is None else state_dict)
        kept, tied = _untie(weights)
        state = {
            "format": FORMAT,
            "model": self.config.model_dump(mode="json"),
            "adapters": tune.adapters(self.model),
            "tied": tied,
        }
        with atomic_folder(path) as folder:
            try:
                save_torch_state_dict(kept, folder)
            except SafetensorError as error:
                # safetensors hides the operating system's error in a text
                raise OSError(errno.ENOSPC, str(error)) from error
            self.processor.save(folder / PROCESSOR)
            _write_json(folder / STATE, state)
            _write_json(folder / PROVENANCE, {**_versions(), **self.provenance})
            if self.recipe is not None:
                (folder / RECIPE).write_text(self.recipe, encoding="utf-8")
        return Path(path)

    @property
    def hash(self) -> str:
        """SHA-256 over the names and bytes of all weights: tells whether two results come from the same model."""
        digest = hashlib.sha256()
        for name, tensor in sorted(_untie(dict(self.model.state_dict()))[0].items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def generate(
        self,
        samples: Sequence[Sample],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = engine.BATCH,
    ) -> list[str]:
        """Answer each sample's last question; an answer the sample already holds is not shown to the model.

        Arguments as for `generate_each`.

        Raises:
            SampleError: a sample cannot be used; says which and why.
        """
        answers: dict[int, str] = {}
        for place, said in self.generate_each(samples, max_new_tokens, temperature, top_p, seed, batch_size):
            if isinstance(said, SampleError):
                raise said
            answers[place] = said
        return [answers[place] for place in range(len(samples))]

    def generate_each(
        self,
        samples: Sequence[Sample],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = engine.BATCH,
    ) -> Iterator[tuple[int, str | SampleError]]:
        """Yield (place of a sample, its answer, or why it cannot be used), each as soon as it is finished.

        Samples about the same media, wherever they stand, share their prompts' beginning, which is computed once.
        Greedy answers do not depend on what is asked beside.

        Args:
            samples: what to answer, any number of them.
            max_new_tokens: longest answer, in tokens.
            temperature: 0 takes the likeliest token; above 0 samples.
            top_p: when sampling, only from the likeliest tokens that hold this much probability together.
            seed: of the sampling; each sample draws from its own stream.
            batch_size: most answers that are written at the same time; fewer where memory has no room for more.
        """
        order = _by_media(samples)
        ids = engine.generate_each(
            self.model,
            self.processor,
            self._prompts([samples[place] for place in order]),
            max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            batch_size=batch_size,
        )
        for number, said in ids:
            place = order[number]
            if isinstance(said, SampleError):  # its medium may have been read for another sample
                yield place, SampleError(said.message, samples[place].id, said.path)
            else:
                yield place, self.processor.decode(said)

    def stream(
        self, sample: Sample, max_new_tokens: int = 256, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> Iterator[str]:
        """Answer one sample piece by piece; the pieces joined are what `generate` returns."""
        prompt = self.processor.prompt(sample)
        ids: list[int] = []
        shown = ""
        for token in engine.stream(
            self.model, self.processor, prompt, max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
        ):
            ids.append(token)
            text = self.processor.settled(ids)
            if len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        rest = self.processor.decode(ids)
        if rest != shown:
            yield rest[len(shown) :]

    def loss(self, samples: Sequence[Sample], packed: bool = True) -> Tensor:
        """Return the mean negative log-likelihood over all supervised tokens, differentiable.

        Args:
            samples: with answers.
            packed: lay samples about the same media side by side behind their common prefix, and fill rows; False
                runs them one by one. Both give the same value and the same gradients.

        Raises:
            ValueError: no samples.
            SampleError: a sample cannot be used; says which and why.
        """
        if not samples:
            raise ValueError("the loss needs at least one sample, got none")
        pool: dict[str, Media] = {}
        encoded = [self.processor.encode(sample, pool=pool) for sample in samples]
        rows = self._rows(encoded, packed)
        count = sum(batch.num_supervised for batch in rows)
        return torch.stack([self.model(**batch.model_inputs(), normalizer=count).loss for batch in rows]).sum()

    @torch.no_grad()
    def logits(self, sample: Sample) -> Tensor:
        """Return the logits [T, vocabulary] of a whole conversation; T counts the expanded media tokens.

        Raises:
            SampleError: it cannot be used, or its template needs one branch per answer, so that no single row exists.
        """
        answered = sample.messages[-1].role == "assistant"
        encoded = self.processor.encode(sample) if answered else self.processor.prompt(sample)
        if len(encoded.branches) > 1:
            raise SampleError(
                "its chat template rewrites earlier turns, so it has no single row of logits; "
                "give a sample with one question and answer",
                sample.id,
            )
        (batch,) = self._rows([encoded], packed=False)
        inputs = batch.model_inputs()
        inputs.pop("targets")
        every = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        return self.model.logits(**{**inputs, "logit_index": every})

    def score_options(self, sample: Sample, options: Sequence[str]) -> list[float]:
        """Return the log-likelihood of each option as the answer to the sample's last question, end mark included."""
        return self.score_options_each([sample], [options])[0]

    def score_options_each(
        self, samples: Sequence[Sample], options: Sequence[Sequence[str]], batch_size: int = engine.BATCH
    ) -> list[list[float]]:
        """Return what `score_options` returns for each sample; what samples share is computed once.

        Args:
            samples: what is asked.
            options: the options of each sample.
            batch_size: most samples that are in work at the same time.

        Raises:
            SampleError: a sample cannot be used; says which and why.
            ValueError: not as many lists of options as samples, or a text in place of a list.
        """
        order = _by_media(samples)
        if len(options) != len(samples):
            raise ValueError(f"every sample needs its options: {len(samples)} samples, {len(options)} lists of options")
        for sample, own in zip(samples, options, strict=True):
            if isinstance(own, str):
                raise ValueError(f"options of sample {sample.id!r}: give a list of texts, got the text {own!r}")

        def asked() -> Iterator[tuple[Encoded, list[list[int]]]]:
            for place, prompt in zip(order, self._prompts([samples[place] for place in order]), strict=True):
                if isinstance(prompt, SampleError):
                    raise prompt
                yield prompt, [self._answer(samples[place], prompt, option) for option in options[place]]

        scores = dict(zip(order, engine.score(self.model, asked(), batch_size), strict=True))
        return [scores[place] for place in range(len(samples))]

    def _answer(self, sample: Sample, prompt: Encoded, answer: str) -> list[int]:
        """Return the ids of an answer, as they would be learnt behind this prompt."""
        said = Message(role="assistant", content=answer)  # type: ignore[arg-type]  # plain text is taken as one part
        answered = sample.model_copy(update={"messages": (*sample.prompt().messages, said)})
        branch = self.processor.encode(answered).branches[-1]
        start = prompt.num_tokens
        return [int(i) for i in branch.ids[start:][branch.labels[start:] != IGNORE]]

    def _prompts(self, samples: Iterable[Sample]) -> Iterator[Encoded | SampleError]:
        """Yield what is asked as tokens, bit by bit; neighbours share their media."""
        pool: dict[str, Media] = {}
        for sample in samples:
            try:
                prompt = self.processor.prompt(sample, pool=pool)
            except SampleError as error:
                yield error
                continue
            pool = {medium.key: medium.plain or medium for medium in prompt.media}
            yield prompt

    def _rows(self, encoded: Sequence[Encoded], packed: bool) -> list[Any]:
        """Return the batches on the model's device; an LLM that cannot be packed runs its samples one by one."""
        device = next(self.model.parameters()).device
        longest = max(self.processor.max_tokens, *(one.num_tokens for one in encoded))
        together, apart = arrange(encoded, longest, self.model.position_limit if packed else 0)
        return [collate(row).to(device) for row in together + apart]


def _by_media(samples: Sequence[Sample]) -> list[int]:
    """Return the places of samples, those about the same media next to each other."""
    wrong = [samples] if isinstance(samples, Sample) else [one for one in samples if not isinstance(one, Sample)]
    if wrong:
        given = type(wrong[0]).__name__
        raise TypeError(f"give a list of samples, got {given}; Sample.from_dict makes a sample of a mapping")
    first: dict[tuple[str, ...], int] = {}
    return sorted(range(len(samples)), key=lambda place: first.setdefault(samples[place].media_key, place))


def load(
    path: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32, allow_code: Sequence[str] = ()
) -> Bundle:
    """Read a bundle; the same as `Bundle.load`."""
    return Bundle.load(path, device=device, dtype=dtype, allow_code=allow_code)


def read_config(path: str | Path, allow_code: Sequence[str] = ()) -> ModelConfig:
    """Return what a bundle's model is made of, without loading it.

    Raises:
        BundleError: no bundle, a damaged one, one of a newer format, or one that names code that is not allowed.
    """
    return _read(Path(path), allow_code)[0]


def packages(config: ModelConfig) -> dict[str, str]:
    """Return the packages whose code a model runs, which is what its dotted paths name: package -> dotted path."""
    named = [name for tower in config.towers.values() for name in (tower.encoder.path, tower.connector)]
    named += [name for tower in config.towers.values() for name in _texts(tower.encoder_options)]
    return {name.split(":")[0].split(".")[0]: name for name in named if name is not None and ":" in name}


def _texts(options: Any) -> Iterator[str]:
    """Yield all texts among an encoder's options, which may name encoders inside it; architectures run no code."""
    if isinstance(options, str):
        yield options
    elif isinstance(options, Mapping):
        for key, value in options.items():
            if key != "architecture":
                yield from _texts(value)
    elif isinstance(options, Sequence):
        for value in options:
            yield from _texts(value)


def _processor(built: Built, config: ModelConfig, max_tokens: int) -> Processor:
    towers = {
        name: TowerInput(tower.placeholder, name, tower.num_tokens, tower.encoder.spec)
        for name, tower in built.model.towers.items()
    }
    for name, tokenizer in built.questions.items():
        questions = QuestionEncoder(tokenizer, built.model.towers[name].encoder.text.max_tokens) if tokenizer else None
        towers[name] = replace(towers[name], questions=questions)
    return Processor(
        built.tokenizer, config.template, towers, max_tokens=max_tokens, box_format=BOX_FORMATS[config.boxes]
    )


def _read(path: Path, allow_code: Sequence[str]) -> tuple[ModelConfig, dict[str, Any]]:
    """Return what the model is made of, and all that bundle.json holds."""
    file = path / STATE
    if not file.is_file():
        raise BundleError(f"{path} is no bundle: it holds no {STATE}. A training run keeps its bundle in RUN/bundle")
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BundleError(f"{file}: damaged ({error}); copy the bundle again") from error
    if state.get("format") != FORMAT:
        raise BundleError(f"{file}: format {state.get('format')!r}, this version reads {FORMAT}; update medmvl")
    config = ModelConfig.model_validate(state["model"])
    allowed = {allow_code} if isinstance(allow_code, str) else set(allow_code)
    for package, name in packages(config).items():
        if package not in allowed:
            raise BundleError(
                f"{path} names {name!r}, which runs code of the package {package!r}. If you trust it: "
                f"load(..., allow_code=[{package!r}]), --allow-code {package} on the command line, or a recipe whose "
                "`model` names the package too"
            )
    return config, state


def _untie(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights with every shared tensor once, and which name stands for which (tied embeddings)."""
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in weights.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and key in first:
            tied[name] = first[key]
        else:
            first[key] = name
            kept[name] = tensor
    return kept, tied


def _load_weights(model: VLM, path: Path, tied: Mapping[str, str]) -> None:
    try:
        result = load_torch_model(model, path, strict=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path}: its weights cannot be read: {error}; copy the bundle again") from error
    missing = [name for name in result.missing_keys if name not in tied]
    if missing or result.unexpected_keys:
        raise BundleError(
            f"{path}: weights and config do not match; missing {missing[:5]}, unexpected {result.unexpected_keys[:5]}"
        )
    held = model.state_dict()
    for name, stored in tied.items():  # shared when it was saved, whether or not the config shares them
        if held[name].data_ptr() != held[stored].data_ptr():
            held[name].copy_(held[stored])


def _versions() -> dict[str, Any]:
    packages = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {"versions": {"medmvl": __version__, "python": platform.python_version(), **packages}}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
