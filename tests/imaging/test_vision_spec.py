"""Specs from the preprocessor configs that checkpoints really ship, and errors for those that cannot be followed."""

import json

import pytest

from medmvl.imaging.spec import FAMILIES, SpecError, VisionSpec

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)

# Files as published, shortened to the fields that were in them.
CLIP_OLD = {
    "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 224,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": list(CLIP_MEAN),
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
SIGLIP = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    "image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor", "resample": 3,
    "rescale_factor": 0.00392156862745098, "size": {"height": 256, "width": 256},
}  # fmt: skip
DINOV2 = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor", "image_std": [0.229, 0.224, 0.225], "resample": 3,
    "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 256},
}  # fmt: skip
DINOV3 = {
    "crop_size": None, "data_format": "channels_first", "default_to_square": True, "device": None,
    "disable_grouping": None, "do_center_crop": None, "do_convert_rgb": None, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "DINOv3ViTImageProcessorFast", "image_std": [0.229, 0.224, 0.225],
    "input_data_format": None, "resample": 2, "rescale_factor": 0.00392156862745098, "return_tensors": None,
    "size": {"height": 224, "width": 224},
}  # fmt: skip
RESNET = {
    "crop_pct": 0.875, "do_normalize": True, "do_resize": True, "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 224,
}  # fmt: skip
VIT_OLD = {
    "do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224,
    "feature_extractor_type": "ViTFeatureExtractor", "resample": 2,
}  # fmt: skip


def layout(config):
    spec = VisionSpec.from_preprocessor(config)
    return spec.size, spec.fit, spec.edge, spec.resample


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CLIP_OLD, ((224, 224), "crop", 224, "bicubic")),
        (SIGLIP, ((256, 256), "stretch", None, "bicubic")),
        (DINOV2, ((224, 224), "crop", 256, "bicubic")),
        (DINOV3, ((224, 224), "stretch", None, "bilinear")),
        (RESNET, ((224, 224), "crop", 256, "bicubic")),
        (VIT_OLD, ((224, 224), "stretch", None, "bilinear")),
        ({**RESNET, "size": {"shortest_edge": 384}}, ((384, 384), "stretch", None, "bicubic")),
        ({"image_processor_type": "DeiTImageProcessor"}, ((224, 224), "crop", (256, 256), "bicubic")),
        ({"image_processor_type": "LevitImageProcessor"}, ((224, 224), "crop", 256, "bicubic")),
        ({"image_processor_type": "PoolFormerImageProcessor"}, ((224, 224), "crop", 248, "bicubic")),
        ({"image_processor_type": "Siglip2ImageProcessorFast"}, ((256, 256), "stretch", None, "bilinear")),
        ({"image_processor_type": "LlavaImageProcessor", "do_pad": True}, ((224, 224), "pad", None, "bicubic")),
        ({**CLIP_OLD, "do_resize": False}, ((224, 224), "crop", None, "bilinear")),
        ({**DINOV2, "size": {"height": 224, "width": 224}}, ((224, 224), "stretch", None, "bicubic")),
        ({**SIGLIP, "size": [384, 256]}, ((384, 256), "stretch", None, "bicubic")),
    ],
)
def test_published_configs(config, expected):
    assert layout(config) == expected


def test_normalisation():
    assert VisionSpec.from_preprocessor(CLIP_OLD).mean == CLIP_MEAN
    off = VisionSpec.from_preprocessor({**SIGLIP, "do_rescale": False, "do_normalize": False})
    assert (off.rescale, off.mean, off.std) == (1.0, (0, 0, 0), (1, 1, 1))
    single = VisionSpec.from_preprocessor({**SIGLIP, "image_mean": [0.3], "image_std": [0.2]})
    assert (single.channels, single.mean, single.std) == (1, (0.3,), (0.2,))
    assert VisionSpec.from_preprocessor({**SIGLIP, "image_mean": 0.4}).mean == (0.4,) * 3


@pytest.mark.parametrize("code", range(6))
def test_every_resampling_filter(code):
    from PIL import Image

    name = VisionSpec.from_preprocessor({**SIGLIP, "resample": code}).resample
    assert Image.Resampling[name.upper()] == code


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_complete_default(family):
    VisionSpec.from_preprocessor({"image_processor_type": f"{family}ImageProcessor"})


def test_folders_and_nested_processor_configs(tmp_path):
    with pytest.raises(SpecError, match=r"no preprocessor_config\.json or processor_config\.json"):
        VisionSpec.from_pretrained(tmp_path)
    nested = {"processor_class": "CLIPProcessor", "image_processor": CLIP_OLD}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert VisionSpec.from_pretrained(tmp_path) == VisionSpec.from_preprocessor(CLIP_OLD)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SIGLIP))
    assert VisionSpec.from_pretrained(tmp_path) == VisionSpec.from_preprocessor(SIGLIP)
    assert VisionSpec.from_pretrained(tmp_path / "preprocessor_config.json").size == (256, 256)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(SpecError, match=r"preprocessor_config\.json: is no JSON"):
        VisionSpec.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**SIGLIP, "do_thumbnail": True}))
    with pytest.raises(SpecError, match=r"preprocessor_config\.json: field\(s\) do_thumbnail"):
        VisionSpec.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"size_divisor": 32, "do_thumbnail": True}, "do_thumbnail, size_divisor"),
        ({"do_pad": True}, "do_pad"),
        ({"crop_pct": 0.9}, "crop_pct"),
        ({"size": {"longest_edge": 512}}, "longest_edge"),
        ({"size": {"shortest_edge": 256}}, "depends on the picture's shape"),
        ({"size": {"shortest_edge": 256, "longest_edge": 512}}, "longest_edge"),
        ({"resample": 9}, "resample 9 is unknown"),
        ({"image_processor_type": "PerceiverImageProcessor"}, "crop_size of processor Perceiver"),
        ({"do_resize": False}, "the size would be the picture's own"),
        ({"image_std": [0.5, 0.5]}, "both have 1 or 3 numbers"),
        ({"image_mean": ["a", "b", "c"]}, "image_mean must be numbers"),
    ],
)
def test_what_cannot_be_followed_is_named(change, words):
    with pytest.raises(SpecError, match=words):
        VisionSpec.from_preprocessor({**SIGLIP, **change})


def test_switches_that_are_off_change_nothing():
    base = VisionSpec.from_preprocessor(SIGLIP)
    off = {"do_flip_channel_order": False, "do_thumbnail": False, "do_pad": False, "size_divisor": None}
    assert VisionSpec.from_preprocessor({**SIGLIP, **off}) == base


def test_unknown_processors_must_say_everything():
    assert VisionSpec.from_preprocessor({**SIGLIP, "image_processor_type": "NewImageProcessor"}).size == (256, 256)
    rest = {key: value for key, value in SIGLIP.items() if key not in ("image_processor_type", "resample")}
    with pytest.raises(SpecError, match=r"'resample' is missing .* of unknown class"):
        VisionSpec.from_preprocessor(rest)


def test_json_round_trip():
    for config in (CLIP_OLD, SIGLIP, {"image_processor_type": "DeiTImageProcessor"}):
        spec = VisionSpec.from_preprocessor(config)
        assert VisionSpec.model_validate_json(spec.model_dump_json()) == spec
        assert VisionSpec.model_validate(json.loads(spec.model_dump_json())) == spec


def test_contradictions_are_refused():
    for fields, words in (
        ({"size": (0, 5)}, "size must be positive"),
        ({"size": (4, 4), "channels": 1}, "one number per channel"),
        ({"size": (4, 4), "std": (0.5, 0.5, 0.0)}, "std must be positive"),
        ({"size": (4, 4), "edge": 5}, "edge belongs to fit 'crop'"),
        ({"size": (4, 4), "edge": 0, "fit": "crop"}, "edge must be positive"),
        ({"size": (4, 5), "fit": "pad"}, "makes a square"),
        ({"size": (4, 4), "sise": 4}, "sise"),
    ):
        with pytest.raises(ValueError, match=words):
            VisionSpec(**fields)
