"""Our preparation gives the pixels of the PIL image processors of transformers, to a hundredth of a grey level."""

import importlib

import numpy as np
import pytest
import torch
from PIL import Image

from medmvl.imaging.picture import Picture
from medmvl.imaging.prepare import prepare
from medmvl.imaging.spec import FAMILIES, VisionSpec

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CASES = {
    "clip": ("clip", "CLIP", {}),
    "clip_336": ("clip", "CLIP", {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}),
    "clip_crop_only": ("clip", "CLIP", {"do_resize": False, "crop_size": {"height": 130, "width": 151}}),
    "clip_not_normalised": ("clip", "CLIP", {"do_normalize": False, "do_rescale": False}),
    "siglip": ("siglip", "Siglip", {"size": {"height": 256, "width": 256}}),
    "siglip_384": ("siglip", "Siglip", {"size": {"height": 384, "width": 384}, "resample": 2}),
    "vit": ("vit", "ViT", {}),
    "vit_lanczos": ("vit", "ViT", {"resample": 1}),
    "vit_nearest": ("vit", "ViT", {"resample": 0}),
    "vit_box": ("vit", "ViT", {"resample": 4}),
    "vit_hamming": ("vit", "ViT", {"resample": 5}),
    "vit_oblong": ("vit", "ViT", {"size": {"height": 160, "width": 224}}),
    "dinov2": ("bit", "Bit", {"size": {"shortest_edge": 256}, **IMAGENET}),
    "rad_dino": ("bit", "Bit", {"size": {"shortest_edge": 518}, "crop_size": {"height": 518, "width": 518}}),
    "convnext": ("convnext", "ConvNext", {"size": {"shortest_edge": 224}, **IMAGENET}),
    "convnext_384": ("convnext", "ConvNext", {}),
    "deit": ("deit", "DeiT", {}),
    "beit": ("beit", "Beit", {}),
    "blip": ("blip", "Blip", {}),
    "levit": ("levit", "Levit", {}),
    "poolformer": ("poolformer", "PoolFormer", {}),
    "pvt": ("pvt", "Pvt", {}),
    "segformer": ("segformer", "Segformer", {}),
    "mobilenet_v2": ("mobilenet_v2", "MobileNetV2", {}),
    "efficientnet": ("efficientnet", "EfficientNet", {}),
    "efficientnet_offset": ("efficientnet", "EfficientNet", {"rescale_offset": True, "include_top": False}),
    "llava_pad": (
        "llava", "Llava",
        {"do_pad": True, "size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    ),
}  # fmt: skip
SIZES = [(256, 256), (512, 512), (97, 301), (640, 401), (64, 64)]


def scene(height, width, color):
    """Edges, gradients and noise, as a radiograph has."""
    generator = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    planes = []
    for shift in range(3 if color else 1):
        plane = 120 + 100 * np.sin((x + 13 * shift) / 17) * np.cos(y / 23) + generator.normal(0, 12, (height, width))
        plane[height // 4 : height // 2, width // 3 : width // 2] += 90
        planes.append(plane)
    array = np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)
    return array if color else array[..., 0]


def processor(module, name):
    found = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    return getattr(found, f"{name}ImageProcessorPil")


def grey_levels(difference, spec):
    return np.abs(difference) * np.array(spec.std)[:, None, None] / spec.rescale


@pytest.mark.parametrize("name", CASES)
def test_pixels_equal_those_of_transformers(name):
    module, family, options = CASES[name]
    theirs = processor(module, family)(**options)
    spec = VisionSpec.from_preprocessor(theirs.to_dict())
    assert spec == VisionSpec.from_preprocessor({"image_processor_type": f"{family}ImageProcessor", **options})
    for height, width in SIZES:
        for color in (True, False):
            array = scene(height, width, color)
            image = Image.fromarray(array).convert("RGB")
            expected = np.asarray(theirs(image, return_tensors="np")["pixel_values"][0])
            pixels = prepare(Picture(array), spec).pixels
            assert pixels.shape == expected.shape
            levels = grey_levels(pixels - expected, spec)
            assert levels.max() <= 0.01, f"{height} x {width}: {levels.max()} grey levels"


def test_every_family_of_the_table_is_held_to_transformers():
    held = {family for _, family, _ in CASES.values()} | {"Siglip2", "DINOv3ViT", "ChineseCLIP", "MobileNetV1"}
    assert held == set(FAMILIES)


@pytest.mark.parametrize(("module", "family"), [("chinese_clip", "ChineseCLIP"), ("mobilenet_v1", "MobileNetV1")])
def test_defaults_of_the_remaining_families(module, family):
    theirs = VisionSpec.from_preprocessor(processor(module, family)().to_dict())
    assert VisionSpec.from_preprocessor({"image_processor_type": f"{family}ImageProcessor"}) == theirs


def test_naflex_of_siglip2_on_square_pictures():
    theirs = processor("siglip2", "Siglip2")()
    spec = VisionSpec.from_preprocessor(theirs.to_dict())
    array = scene(300, 300, True)
    patches = np.asarray(theirs(Image.fromarray(array), return_tensors="np")["pixel_values"][0])
    expected = patches.reshape(16, 16, 16, 16, 3).transpose(4, 0, 2, 1, 3).reshape(3, 256, 256)
    assert grey_levels(prepare(Picture(array), spec).pixels - expected, spec).max() <= 0.01


def test_dinov3_against_its_own_order_of_steps():
    # Its processor needs torchvision: rescale, antialiased resize of floats, normalise; here in torch alone.
    spec = VisionSpec.from_preprocessor({"image_processor_type": "DINOv3ViTImageProcessorFast"})
    for height, width in SIZES:
        array = scene(height, width, True)
        planes = torch.from_numpy(array.transpose(2, 0, 1).copy())[None].float() / 255
        resized = torch.nn.functional.interpolate(planes, (224, 224), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
        expected = ((resized[0] - mean) / std).numpy()
        assert grey_levels(prepare(Picture(array), spec).pixels - expected, spec).max() <= 1.01
