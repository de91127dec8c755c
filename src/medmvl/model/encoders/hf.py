"""Any 2D vision model of transformers as an encoder: ViT families and convolutional backbones.

The feature is `hidden_states[layer]`: the output of a block before any final norm (layer -1 is what LLaVA-style models
read from SigLIP and CLIP). Shapes, the token grid and the parameters that the feature reaches are found by running the
same architecture once on the meta device, not from a table of families.
"""

import inspect
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging

from medmvl.core.log import get_logger
from medmvl.imaging.spec import PREPROCESSOR_FILES, SpecError, VisionSpec
from medmvl.model.config import TowerConfig, Weights
from medmvl.model.encoders.base import Encoder, EncoderError, changed, default_normalisation
from medmvl.model.source import check_weights

REFUSED = {
    "vit_mae": "it shuffles and masks its patches; set model_type 'vit' in its config.json to load the encoder alone",
    "pixtral": "it takes a list of images of any size instead of a fixed grid",
}
CHANNELS_LAST = ("hiera", "sam_vision_model")
"""Families whose feature maps are [B, H, W, C]; all others give [B, C, H, W]."""


class FirstBlocks(nn.ModuleList):
    """All blocks of a model, of which a forward pass runs only the first `used`.

    The others keep their places in the state dict, but are neither computed nor trained.
    """

    def __init__(self, blocks: nn.ModuleList, used: int) -> None:
        super().__init__(blocks)
        self.used = used

    def __iter__(self) -> Iterator[nn.Module]:
        return itertools.islice(super().__iter__(), self.used)


class Feature(NamedTuple):
    """What one run on the meta device tells about a feature."""

    used: int | None  # blocks to run; None: the whole model
    index: int  # of the feature among the hidden states of that run
    grid: tuple[int, int]
    width: int
    prefix: int  # tokens in front of the patch tokens: class tokens, then registers
    class_tokens: int
    reachable: frozenset[str]


class HFEncoder(Encoder):
    """A transformers vision model; the model itself is `.model`, its keys are transformers' own.

    Args:
        config: of the vision model alone.
        spec: how images are prepared; its size decides the grid (positions are interpolated where the model can).
        layer: index into hidden_states; 0 is the embedding (or stem), -1 the last block or stage.
        tokens: "all" keeps class tokens in front, "patches" drops them. Registers are always dropped.
        final_norm: take the model's own last_hidden_state instead, after its final norm (layer -1 only).
        model: the weights; None builds random ones on the current default device.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        spec: VisionSpec,
        layer: int = -1,
        tokens: str = "all",
        final_norm: bool = False,
        model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        _check_spec(config, spec)
        if tokens not in ("all", "patches"):
            raise EncoderError(f"tokens must be 'all' or 'patches', got {tokens!r}")
        if final_norm and layer != -1:
            raise EncoderError(f"final_norm belongs to the last layer: layer must be -1, got {layer}")
        self.spec, self.final_norm = spec, final_norm
        feature = _probe(config, spec, layer, tokens, final_norm)
        self.grid, self.width, self.class_tokens = feature.grid, feature.width, feature.class_tokens
        self._feature = feature
        self.model = _random(config) if model is None else model
        _prune(self.model, config, feature.used)
        self.eval()

    def reachable(self) -> frozenset[str]:
        return frozenset(f"model.{name}" for name in self._feature.reachable)

    def self_contained(self, config: TowerConfig) -> TowerConfig:
        own = Weights(architecture=architecture(self.model.config))
        return super().self_contained(config).model_copy(update={"encoder": own})

    def forward(self, pixels: Tensor) -> Tensor:
        states, last = _run(self.model, self.spec, self.as_weights(pixels))
        state = last if self.final_norm else states[self._feature.index]
        return _select(_to_tokens(self.model.config, state), self._feature.prefix, self.class_tokens)


def architecture(config: PretrainedConfig) -> dict[str, Any]:
    """Return a transformers config as plain JSON, defaults included, without the place it came from."""
    fields = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in fields.items() if key not in ("_name_or_path", "name_or_path")}


def load(
    source: Path | Mapping[str, Any],
    spec: Mapping[str, Any] | None = None,
    weights: bool = True,
    preprocessor: Mapping[str, Any] | None = None,
    where: str = "encoder",
    **options: Any,
) -> HFEncoder:
    """Build an encoder from a checkpoint folder or an architecture.

    Args:
        source: a folder with config.json (a full CLIP/SigLIP checkpoint gives its vision part), or a transformers
            config as a dict with its model_type.
        spec: fields of the VisionSpec to set otherwise than the checkpoint's preprocessor says.
        weights: False builds the folder's architecture with random weights.
        preprocessor: preprocessor settings of an architecture; without them its own image size, mean and std 0.5.
        where: what is being built, for errors.
        options: of `HFEncoder`.

    Raises:
        EncoderError, SourceError: what is missing or does not fit, and what to do.
    """
    try:
        config = _config(source)
        full = _spec(config, source, preprocessor, spec or {})
        if isinstance(source, Path) and weights:
            check_weights(source, where)
            model, missing = _load_weights(source, config)
            encoder = HFEncoder(config, full, model=model, **options)
            _check_missing(encoder, missing, source)
            return encoder
        return HFEncoder(config, full, **options)
    except (EncoderError, SpecError) as error:
        raise EncoderError(f"{where}: {error}") from error


def _config(source: Path | Mapping[str, Any]) -> PretrainedConfig:
    """Return the config of the vision model alone."""
    try:
        if isinstance(source, Path):
            config = AutoConfig.from_pretrained(source, local_files_only=True)
        else:
            fields = dict(source)
            config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    except (ValueError, OSError, KeyError, TypeError, StrictDataclassError) as error:
        raise EncoderError(
            f"{source if isinstance(source, Path) else source.get('model_type')!r}: transformers cannot read this "
            f"config ({str(error).splitlines()[0]}). Models that bring their own code are never run"
        ) from error
    config = getattr(config, "vision_config", config)
    if config.model_type in REFUSED:
        raise EncoderError(f"{config.model_type!r} cannot be an encoder: {REFUSED[config.model_type]}")
    if type(config) not in AutoModel._model_mapping or not _takes_pixels(config):
        raise EncoderError(f"transformers has no vision model that can be built alone for {config.model_type!r}")
    return config


def _spec(
    config: PretrainedConfig,
    source: Path | Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None,
    changes: Mapping[str, Any],
) -> VisionSpec:
    """Return the checkpoint's own spec with `changes` on top."""
    base = VisionSpec(size=_native_size(config), **default_normalisation(getattr(config, "num_channels", 3)))
    if preprocessor is not None:
        base = VisionSpec.from_preprocessor(preprocessor)
    # A whole spec of the user's needs no preprocessor file beside the weights.
    elif isinstance(source, Path) and not {"size", "mean", "std"} <= set(changes):
        if any((source / name).exists() for name in PREPROCESSOR_FILES):
            base = VisionSpec.from_pretrained(source)
        else:
            get_logger(__name__).warning(
                "%s holds no %s: pictures will be stretched to %d x %d, with mean and std 0.5. If its weights were "
                "trained on pictures prepared otherwise, put their file there, or write the spec (size, mean, std) "
                "into the recipe",
                source,
                " or ".join(PREPROCESSOR_FILES),
                *base.size,
            )
    return changed(base, changes)


def _native_size(config: PretrainedConfig) -> tuple[int, int]:
    """Return (height, width) that an architecture was made for; 224 when it does not say."""
    if _is_naflex(config):
        side = int(config.num_patches**0.5) * config.patch_size
        return side, side
    size = getattr(config, "image_size", None) or 224
    return (size, size) if isinstance(size, int) else (int(size[-2]), int(size[-1]))


def _is_naflex(config: PretrainedConfig) -> bool:
    """Whether the model takes patches with a stated shape (SigLIP2 NaFlex) instead of pixels."""
    return config.model_type == "siglip2_vision_model"


def _check_spec(config: PretrainedConfig, spec: VisionSpec) -> None:
    channels = getattr(config, "num_channels", 3)
    if spec.channels != channels or len(spec.size) != 2:
        raise EncoderError(
            f"{config.model_type!r} takes 2D images of {channels} channels; "
            f"the spec says size {spec.size}, {spec.channels} channels"
        )


def _takes_pixels(config: PretrainedConfig) -> bool:
    found = AutoModel._model_mapping[type(config)]
    classes = found if isinstance(found, (list, tuple)) else (found,)
    return all("pixel_values" in inspect.signature(cls.forward).parameters for cls in classes)


def _random(config: PretrainedConfig) -> PreTrainedModel:
    """Build random float32 weights on the current default device."""
    return AutoModel.from_config(config, dtype=torch.float32).eval()


def _load_weights(folder: Path, config: PretrainedConfig) -> tuple[PreTrainedModel, set[str]]:
    """Load float32 weights; return the model and the names of parameters that the checkpoint does not have."""
    try:
        with _quiet():
            model, info = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise EncoderError(f"{folder}: its weights cannot be read: {str(error).splitlines()[0]}") from error
    return model, set(info["missing_keys"])


def _check_missing(encoder: HFEncoder, missing: set[str], folder: Path) -> None:
    """Refuse a checkpoint without weights that the feature needs; a missing pooler or head does no harm."""
    needed = sorted(f"model.{name}" for name in missing if f"model.{name}" in encoder.reachable())
    if needed:
        raise EncoderError(
            f"{folder} lacks {len(needed)} weights of {encoder.model.config.model_type!r}: {', '.join(needed[:3])}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from listing the text half of a dual checkpoint as unexpected."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _prune(model: PreTrainedModel, config: PretrainedConfig, used: int | None) -> None:
    """Let a forward pass run only the first `used` blocks (None: all), and no pooling head."""
    if getattr(model, "use_head", False):
        # SigLIP's head reads every token and no feature needs it: kept in the state dict, not run.
        model.use_head = False
    if used is not None:
        parent, name = _block_list(model, config)
        setattr(parent, name, FirstBlocks(getattr(parent, name), used))


def _block_list(model: PreTrainedModel, config: PretrainedConfig) -> tuple[nn.Module, str]:
    """Return the owner and name of the list of blocks; raise LookupError when it is not plain."""
    depth = getattr(config, "num_hidden_layers", 0)
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if len(found) != 1:
        raise LookupError(f"{len(found)} lists of {depth} blocks")
    return found[0]


def _run(model: PreTrainedModel, spec: VisionSpec, pixels: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Run the model on pixels [B, C, H, W]; return its hidden states, as maps where it can, and last_hidden_state."""
    inputs: dict[str, Any] = {"pixel_values": pixels}
    if _is_naflex(model.config):
        inputs = _naflex_inputs(pixels, model.config.patch_size)
    elif (
        tuple(spec.size) != _native_size(model.config)
        and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    ):
        inputs["interpolate_pos_encoding"] = True
    output = model(**inputs, output_hidden_states=True, return_dict=True)
    maps = getattr(output, "reshaped_hidden_states", None)
    return maps or output.hidden_states, output.last_hidden_state


def _naflex_inputs(pixels: Tensor, patch: int) -> dict[str, Any]:
    """Cut pixels [B, C, H, W] into NaFlex patches [B, h*w, patch*patch*C], vector order (row, column, channel)."""
    batch, _, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    patches = pixels.unflatten(3, (columns, patch)).unflatten(2, (rows, patch))
    return {
        "pixel_values": patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2),
        # Every patch is real, so no mask; shapes stay on the CPU, where the model reads them as numbers.
        "pixel_attention_mask": None,
        "spatial_shapes": torch.tensor([[rows, columns]] * batch, device="cpu"),
    }


def _to_tokens(config: PretrainedConfig, state: Tensor) -> Tensor:
    """Return [B, T, C]: feature maps are read row by row, token sequences stay."""
    if state.dim() == 3:
        return state
    return state.flatten(1, 2) if config.model_type in CHANNELS_LAST else state.flatten(2).transpose(1, 2)


def _select(tokens: Tensor, prefix: int, class_tokens: int) -> Tensor:
    """Return the first `class_tokens` of the prefix and all patch tokens."""
    if prefix == class_tokens:
        return tokens
    return torch.cat([tokens[:, :class_tokens], tokens[:, prefix:]], dim=1) if class_tokens else tokens[:, prefix:]


@torch.inference_mode(False)
@torch.enable_grad()
def _probe(config: PretrainedConfig, spec: VisionSpec, layer: int, tokens: str, final_norm: bool) -> Feature:
    """Run the architecture once on the meta device, and follow the feature's gradient back."""
    try:
        with torch.device("meta"):
            model = _random(config)
            pixels = torch.empty(1, spec.channels, *spec.size)
        states, last = _run(model, spec, pixels)
    except (ValueError, RuntimeError) as error:
        raise EncoderError(
            f"{config.model_type!r} cannot be built and run on images of {tuple(spec.size)} "
            f"(it was made for {_native_size(config)}): {str(error).splitlines()[0]}"
        ) from error
    if not -len(states) <= layer < len(states):
        raise EncoderError(f"layer {layer} does not exist; choose {-len(states)}..{len(states) - 1}, -1 is the last")
    index, used = layer % len(states), None
    if 0 < index < len(states) - 1:
        used = _prunable(model, config, spec, pixels, index)
        states = states if used is None else _run(model, spec, pixels)[0]
    state = last if final_norm else states[index]
    grid = _grid(config, spec, state)
    sequence = _to_tokens(config, state)
    prefix = sequence.shape[1] - grid[0] * grid[1]
    if not state.requires_grad:
        raise EncoderError(f"layer {layer} is the image itself; choose 1..{len(states) - 1}, -1 is the last")
    class_tokens = prefix - getattr(config, "num_register_tokens", 0) if tokens == "all" and prefix else 0
    _select(sequence, prefix, class_tokens).sum().backward()
    reached = frozenset(name for name, parameter in model.named_parameters() if parameter.grad is not None)
    return Feature(used, index, grid, sequence.shape[2], prefix, class_tokens, reached)


def _prunable(
    model: PreTrainedModel, config: PretrainedConfig, spec: VisionSpec, pixels: Tensor, blocks: int
) -> int | None:
    """Prune the probe to its first `blocks` blocks; return their number, or None where the model cannot be pruned.

    A family whose stages differ in shape, or which does not walk its list in order, is run whole: slower, same result.
    """
    try:
        _prune(model, config, blocks)
        states, _ = _run(model, spec, pixels)
    except (LookupError, ValueError, RuntimeError):
        return None
    return blocks if len(states) == blocks + 1 else None


def _grid(config: PretrainedConfig, spec: VisionSpec, state: Tensor) -> tuple[int, int]:
    """Return (rows, columns) of the patch tokens in a feature."""
    if state.dim() == 4:
        rows, columns = state.shape[1:3] if config.model_type in CHANNELS_LAST else state.shape[2:4]
        return rows, columns
    patch = getattr(config, "patch_size", None)
    sides = (patch, patch) if isinstance(patch, int) else tuple(patch or ())[-2:]
    rows, columns = (size // side for size, side in zip(spec.size, sides, strict=True)) if sides else (0, 0)
    if not rows * columns or not 0 <= state.shape[1] - rows * columns <= 16:
        raise EncoderError(
            f"cannot tell the token grid of {config.model_type!r}: {state.shape[1]} tokens for images of "
            f"{tuple(spec.size)} with patches of {patch}"
        )
    return rows, columns
