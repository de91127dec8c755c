"""How an encoder wants to be fed: saved with the weights, read from any Hugging Face vision checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medmvl.imaging.volume import CANONICAL

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
Fit = Literal["stretch", "crop", "pad"]

# Pillow's numbers, which Hugging Face configs use.
RESAMPLES: tuple[Resample, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Where a checkpoint keeps how its pictures are prepared; the first that is there counts."""


VOLUME_FIELDS = (
    "orientation", "hu_window", "percentile_window", "headroom", "crop_foreground", "spacing", "antialias", "depth",
    "levels",
)  # fmt: skip
"""Fields of a `VisionSpec` that only volumes use."""


class SpecError(ValueError):
    """A preprocessor config that cannot be followed exactly."""


class VisionSpec(BaseModel):
    """What an encoder expects of its pixels.

    A picture is made 8-bit, laid out as `fit` says, resampled, multiplied by `rescale`, then (x - mean) / std.

    A volume is brought to `orientation`; its values are windowed to 0..255 (`hu_window`, then `percentile_window`;
    without either, HU take -1000..1000 and other units their whole range); it is cropped to its foreground, resampled
    to `spacing`, brought to `size` as `fit` and `depth` say, stored as `levels` says, multiplied by `rescale`, then
    (x - mean) / std.

    Attributes:
        size: (height, width) of the encoder's input; (depth, height, width) for volumes.
        channels: 3 (a grey picture is repeated) or 1 (colour becomes luminance).
        mean, std: one number per channel, in rescaled units.
        rescale: factor on the values 0..255.
        resample: Pillow's filter of that name; its antialiasing is on, as in the PIL processors of transformers. For
            volumes "bilinear" (along all three axes) or "nearest"; "bilinear" is their default.
        fit: "stretch": resize to `size`, whatever the shape. "crop": resize as `edge` says, then cut `size` from the
            centre, black where the picture is smaller. "pad": pad to a square with the mean colour, then resize.
            Volumes know "stretch" and "crop"; black is the low end of the window.
        edge: for "crop": length of the shorter edge after resizing, or the exact (height, width); None: no resizing,
            the only choice for volumes.
        orientation: volumes: where depth, row and column indices grow to, three letters of S(uperior)/I(nferior),
            A(nterior)/P(osterior), L(eft)/R(ight), the patient's.
        hu_window: volumes: HU that become 0 and 255; what lies outside is clipped.
        percentile_window: volumes: percentiles of the values that become 0 and 255, for MRI; (0, 100) is min-max.
        headroom: volumes, with percentile_window: share of 0..255 that is left above the upper percentile, so that what
            is brighter (an enhancing lesion) does not drown in white. At 0.4 that percentile becomes 153.
        crop_foreground: volumes: keep the smallest box that holds all values above this share (0..1) of the window;
            0.0 is the threshold of MONAI's CropForeground. None: keep everything.
        spacing: volumes: resample to (depth, row, column) spacing in mm before `fit`.
        antialias: volumes: average over all voxels that fall into a new, larger one. False: linear interpolation
            between the two nearest only, as MONAI's Resize does by default.
        depth: volumes, "stretch" only: "resize" along the depth axis too, or "sample" slices evenly as they are.
        levels: volumes: how values are stored between reading and the encoder, which is what the prepared-volume cache
            holds: "int16" (32,767 steps), "uint8" (255 steps, rounded) or "uint8_floor" (truncated, as published
            MedM-VL code does).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int] | tuple[int, int, int]
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    rescale: float = Field(default=1 / 255, gt=0)
    resample: Resample = "bicubic"
    fit: Fit = "stretch"
    edge: int | tuple[int, int] | None = None
    orientation: str = CANONICAL
    hu_window: tuple[float, float] | None = None
    percentile_window: tuple[float, float] | None = None
    headroom: float = Field(default=0.0, ge=0, lt=1)
    crop_foreground: float | None = Field(default=None, ge=0, lt=1)
    spacing: tuple[float, float, float] | None = None
    antialias: bool = True
    depth: Literal["resize", "sample"] = "resize"
    levels: Literal["int16", "uint8", "uint8_floor"] = "int16"

    @model_validator(mode="before")
    @classmethod
    def _linear_in_3d(cls, data: Any) -> Any:
        size = data.get("size") if isinstance(data, Mapping) else None
        if isinstance(size, Sequence) and len(size) == 3 and data.get("resample") is None:
            return {**data, "resample": "bilinear"}
        return data

    @property
    def is_volume(self) -> bool:
        """Whether this is the spec of a volume."""
        return len(self.size) == 3

    @model_validator(mode="after")
    def _check(self) -> VisionSpec:
        if min(self.size) < 1:
            raise ValueError(f"size must be positive, got {self.size}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{name} needs one number per channel ({self.channels}), got {values}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if self.edge is not None:
            if self.fit != "crop":
                raise ValueError(f"edge belongs to fit 'crop', not to {self.fit!r}")
            if min(self.edge if isinstance(self.edge, tuple) else (self.edge,)) < 1:
                raise ValueError(f"edge must be positive, got {self.edge}")
        if self.fit == "pad" and self.size[-1] != self.size[-2]:
            raise ValueError(f"fit 'pad' makes a square, size is {self.size}")
        if self.is_volume:
            self._check_volume()
        elif given := [name for name in VOLUME_FIELDS if getattr(self, name) != type(self).model_fields[name].default]:
            raise ValueError(f"{', '.join(given)}: for volumes only, and size {self.size} is a picture's")
        return self

    def _check_volume(self) -> None:
        axes = [next((axis for axis in ("SI", "AP", "LR") if letter in axis), "") for letter in self.orientation]
        if len(self.orientation) != 3 or sorted(axes) != ["AP", "LR", "SI"]:
            raise ValueError(
                f"orientation names one of S/I, A/P and L/R for each of depth, row and column ({CANONICAL!r} is the "
                f"default), got {self.orientation!r}"
            )
        for name in ("hu_window", "percentile_window"):
            window = getattr(self, name)
            if window is not None and not window[0] < window[1]:
                raise ValueError(f"{name} goes from a lower to a higher number, got {window}")
        if self.percentile_window and not 0 <= self.percentile_window[0] < self.percentile_window[1] <= 100:
            raise ValueError(f"percentile_window lies within 0..100, got {self.percentile_window}")
        if self.headroom and self.percentile_window is None:
            raise ValueError("headroom belongs to percentile_window; give that too, such as (0.5, 99.5)")
        if self.spacing is not None and min(self.spacing) <= 0:
            raise ValueError(f"spacing is in mm and positive, got {self.spacing}")
        if self.resample not in ("bilinear", "nearest"):
            raise ValueError(f"volumes are resampled 'bilinear' or 'nearest', got {self.resample!r}")
        if self.fit == "pad" or self.edge is not None:
            raise ValueError("volumes know fit 'stretch' and 'crop', without edge")
        if self.depth == "sample" and self.fit != "stretch":
            raise ValueError("depth 'sample' belongs to fit 'stretch'")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VisionSpec:
        """Read the spec of a checkpoint on disk.

        Args:
            folder: holds preprocessor_config.json, or processor_config.json with an `image_processor` inside; or the
                path of such a file.

        Raises:
            SpecError: no such file, no JSON, or a config that cannot be followed exactly.
        """
        folder = Path(folder)
        named = [folder / name for name in PREPROCESSOR_FILES if (folder / name).is_file()]
        files = [folder] if folder.is_file() else named
        if not files:
            raise SpecError(
                f"{folder}: no {' or '.join(PREPROCESSOR_FILES)}; give the folder of a downloaded checkpoint, or "
                "write the spec (size, mean, std, ...) into the recipe"
            )
        try:
            return cls.from_preprocessor(json.loads(files[0].read_text(encoding="utf-8")))
        except SpecError as error:
            raise SpecError(f"{files[0]}: {error}") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise SpecError(f"{files[0]}: is no JSON ({error})") from error

    @classmethod
    def from_preprocessor(cls, config: Mapping[str, Any]) -> VisionSpec:
        """Read the spec from the content of a Hugging Face preprocessor_config.json.

        What the config leaves out takes the default of its processor class, as in transformers. A class that is not in
        `FAMILIES` must state everything itself. A NaFlex config (SigLIP 2) becomes the square that uses its patch
        budget, so a picture of another shape is stretched.

        Raises:
            SpecError: a field that changes pixels and is not understood here, a size that depends on the picture, or
                a missing field.
        """
        if isinstance(config.get("image_processor"), Mapping):
            config = config["image_processor"]
        family = _family(config)
        known = FAMILIES.get(family, {})
        fields = {**known, **{key: value for key, value in config.items() if value is not None}}
        _refuse_unknown(fields, family)
        mean, std = _normalisation(fields, family)
        layout = _layout(fields, family)
        return cls(
            channels=len(mean),
            mean=mean,
            std=std,
            rescale=float(fields.get("rescale_factor", 1 / 255)) if fields.get("do_rescale", True) else 1.0,
            resample=_resample(fields, family) if _resizes(layout) else "bilinear",
            **layout,
        )


_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_OPENAI = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_CROPPED = {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224, "default_to_square": False}

# Processor classes of transformers (without "ImageProcessor", "FeatureExtractor", "Fast", "Pil") and their defaults.
FAMILIES: dict[str, dict[str, Any]] = {
    "Beit": {"size": 224, "do_center_crop": False, "crop_size": 224, "resample": 3, **_HALF},
    "Bit": {**_CROPPED, "resample": 3, **_OPENAI},
    "Blip": {"size": 384, "resample": 3, **_OPENAI},
    "CLIP": {**_CROPPED, "resample": 3, **_OPENAI},
    "ChineseCLIP": {**_CROPPED, "resample": 3, **_OPENAI},
    "ConvNext": {
        "size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 3, "default_to_square": False, **_HALF,
    },
    "DINOv3ViT": {"size": 224, "resample": 2, **_IMAGENET},
    "DeiT": {"size": 256, "do_center_crop": True, "crop_size": 224, "resample": 3, **_HALF},
    "EfficientNet": {
        "size": 346, "do_center_crop": False, "crop_size": 289, "resample": 3, "include_top": True, **_HALF,
    },
    "Levit": {**_CROPPED, "resample": 3, **_IMAGENET},
    "Llava": {**_CROPPED, "resample": 3, **_OPENAI},
    "MobileNetV1": {**_CROPPED, "size": {"shortest_edge": 256}, "resample": 2, **_HALF},
    "MobileNetV2": {**_CROPPED, "size": {"shortest_edge": 256}, "resample": 2, **_HALF},
    "PoolFormer": {**_CROPPED, "crop_pct": 0.9, "resample": 3, **_IMAGENET},
    "Pvt": {"size": 224, "resample": 3, **_IMAGENET},
    "Segformer": {"size": 512, "resample": 2, **_IMAGENET},
    "Siglip": {"size": (224, 224), "resample": 3, "default_to_square": False, **_HALF},
    "Siglip2": {"patch_size": 16, "max_num_patches": 256, "resample": 2, **_HALF},
    "ViT": {"size": 224, "resample": 2, **_HALF},
}  # fmt: skip

_UNDERSTOOD = {
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "crop_pct", "do_rescale", "rescale_factor",
    "rescale_offset", "include_top", "do_normalize", "image_mean", "image_std", "do_pad", "default_to_square",
    "patch_size", "max_num_patches",
}  # fmt: skip
# These name things, or act on labels, batches and colour models that never reach an encoder from here.
_HARMLESS = {
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "do_convert_rgb",
    "do_reduce_labels", "reduce_labels", "data_format", "input_data_format", "return_tensors", "disable_grouping",
    "device", "image_seq_length", "num_additional_image_tokens", "vision_feature_select_strategy",
    "model_input_names", "_valid_processor_keys", "pad_size", "padding_mode",
}  # fmt: skip


def _family(config: Mapping[str, Any]) -> str:
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    for ending in ("Fast", "Pil"):
        name = name.removesuffix(ending)
    return name.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")


def _refuse_unknown(fields: Mapping[str, Any], family: str) -> None:
    # A flag that is off, or an empty value, changes no pixel.
    strange = [key for key, value in fields.items() if key not in _UNDERSTOOD | _HARMLESS and value not in (False, {})]
    if family == "Perceiver":
        strange.append("crop_size")  # it cuts before it resizes
    if fields.get("do_pad") and family != "Llava":
        strange.append("do_pad")
    owners = {"crop_pct": ("ConvNext", "PoolFormer"), "patch_size": ("Siglip2",), "max_num_patches": ("Siglip2",)}
    strange += [key for key, families in owners.items() if key in fields and family not in families]
    if strange:
        raise SpecError(
            f"field(s) {', '.join(sorted(strange))} of processor {family or 'of unknown class'} may change pixels and "
            "are not supported; write the spec (size, mean, std, resample, fit, ...) into the recipe instead"
        )


def _need(fields: Mapping[str, Any], key: str, family: str) -> Any:
    if key not in fields:
        raise SpecError(
            f"field {key!r} is missing and processor {family or 'of unknown class'} has no known default; "
            f"processors with defaults: {', '.join(FAMILIES)}"
        )
    return fields[key]


def _normalisation(fields: Mapping[str, Any], family: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel; EfficientNet's shift to [-1, 1] and second division are folded into them."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if fields.get("do_normalize", True):
        mean, std = (_numbers(_need(fields, key, family), key) for key in ("image_mean", "image_std"))
        if len(mean) != len(std) or len(mean) not in (1, 3):
            raise SpecError(f"image_mean and image_std must both have 1 or 3 numbers, got {mean} and {std}")
    if fields.get("rescale_offset") and fields.get("do_rescale", True):
        mean = tuple(value + 1 for value in mean)
    if fields.get("include_top"):
        second = _numbers(_need(fields, "image_std", family), "image_std")
        std = tuple(value * again for value, again in zip(std, second, strict=True))
    return mean, std


def _numbers(value: Any, key: str) -> tuple[float, ...]:
    """A single number stands for three equal channels."""
    values = value if isinstance(value, list | tuple) else [value] * 3
    if not all(isinstance(item, int | float) for item in values):
        raise SpecError(f"{key} must be numbers, got {value!r}")
    return tuple(float(item) for item in values)


def _resizes(layout: Mapping[str, Any]) -> bool:
    return layout["fit"] != "crop" or layout["edge"] is not None


def _resample(fields: Mapping[str, Any], family: str) -> Resample:
    code = _need(fields, "resample", family)
    if isinstance(code, bool) or code not in range(len(RESAMPLES)):
        raise SpecError(f"resample {code!r} is unknown; Pillow's codes are {dict(enumerate(RESAMPLES))}")
    return RESAMPLES[code]


def _layout(fields: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Return size, fit and edge."""
    if family == "Siglip2":
        side = math.isqrt(int(fields["max_num_patches"])) * int(fields["patch_size"])
        return {"size": (side, side), "fit": "stretch", "edge": None}
    crop = _pair(_need(fields, "crop_size", family), "crop_size") if fields.get("do_center_crop") else None
    if not fields.get("do_resize", True):
        if crop is None:
            raise SpecError("neither do_resize nor do_center_crop is on, so the size would be the picture's own")
        return {"size": crop, "fit": "crop", "edge": None}
    resized = _resized(
        _need(fields, "size", family), bool(fields.get("default_to_square", crop is None or family in FAMILIES))
    )
    if family == "Llava" and fields.get("do_pad"):
        side = resized if isinstance(resized, int) else resized[0]
        if crop not in (None, (side, side)) or resized not in (side, (side, side)):
            raise SpecError(f"do_pad makes a square of {side}, but size is {resized} and crop_size is {crop}")
        return {"size": (side, side), "fit": "pad", "edge": None}
    if family == "ConvNext":
        return _convnext(resized, crop, float(fields["crop_pct"]))
    if family == "Levit" and isinstance(resized, int):
        resized = int((256 / 224) * resized)
    if family == "PoolFormer":
        resized = _poolformer(resized, float(fields["crop_pct"]))
    if crop is not None:
        return {"size": crop, "fit": "crop", "edge": resized} if resized != crop else _stretch(crop)
    if isinstance(resized, int):
        raise SpecError(
            f"size {fields['size']} without a centre crop depends on the picture's shape; write the spec "
            "(size: [height, width], fit, ...) into the recipe instead"
        )
    return _stretch(resized)


def _stretch(size: tuple[int, int]) -> dict[str, Any]:
    return {"size": size, "fit": "stretch", "edge": None}


def _convnext(resized: int | tuple[int, int], crop: tuple[int, int] | None, share: float) -> dict[str, Any]:
    """Below 384 the shorter edge becomes size / crop_pct and the centre is cut out; from 384 on it is stretched."""
    if not isinstance(resized, int) or crop is not None:
        raise SpecError("a ConvNext processor takes size.shortest_edge and no other crop than crop_pct")
    if resized >= 384:
        return _stretch((resized, resized))
    return {"size": (resized, resized), "fit": "crop", "edge": int(resized / share)}


def _poolformer(resized: int | tuple[int, int], share: float) -> int | tuple[int, int]:
    if isinstance(resized, int):
        return int(resized / share)
    height, width = resized
    return int(height / share) if height == width else (int(height / share), int(width / share))


def _resized(size: Any, square: bool) -> int | tuple[int, int]:
    """The resize target: an int is the shorter edge, a pair the exact (height, width)."""
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    if isinstance(size, int) and not isinstance(size, bool):
        return (size, size) if square else size
    return _pair(size, "size")


def _pair(size: Any, key: str) -> tuple[int, int]:
    if isinstance(size, int) and not isinstance(size, bool):
        return size, size
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise SpecError(
        f"{key} {size!r} is not supported; supported are a number, height and width, or shortest_edge for size"
    )
