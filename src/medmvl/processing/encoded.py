"""What a sample becomes on its way to the model: branches of tokens, and media that are read when first looked at."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from medmvl.core.schema import Meta, SampleError
from medmvl.imaging.augment import Augmentation, augment
from medmvl.imaging.geometry import chain
from medmvl.imaging.prepare import prepare
from medmvl.imaging.read import read_image
from medmvl.imaging.spec import VisionSpec

IGNORE = -100
"""Label of a token that is not learned."""

Seed = tuple[int | str, ...]
"""(seed, epoch, media group, ...): what a random variation depends on."""


@dataclass(frozen=True, slots=True)
class View:
    """One picture as its encoder sees it.

    Attributes:
        pixels: float32 [C, H, W].
        affine: float64 [2, 3], sends (x, y) of the file's frame to the encoder's.
        file_size: (height, width) of the file's frame, in pixels.
    """

    pixels: np.ndarray
    affine: np.ndarray
    file_size: tuple[int, int]


@dataclass(eq=False)
class Media:
    """One image or volume of a prompt, read when first looked at and kept as long as this object lives.

    `key` tells equal views apart from others: the path, and the seed if it is augmented. `token` is the placeholder's
    id, which stands `num_tokens` times in the ids. `question` is what a tower that reads text reads beside the view,
    in ids of its own tokenizer; None for all other towers.
    """

    tower: str
    key: str
    token: int
    num_tokens: int
    path: str
    sample_id: str
    spec: VisionSpec
    augmentation: Augmentation | None = None
    seed: Seed = ()
    question: tuple[int, ...] | None = None
    plain: "Media | None" = None
    """The same medium without a question, which holds the view for all questions about it."""

    def asked(self, question: tuple[int, ...]) -> "Media":
        """Return this medium with a question; however many are asked, the file is read once."""
        return replace(self, question=question, plain=self.plain or self)

    @cached_property
    def view(self) -> View:
        """Read, augment and prepare the file.

        Raises:
            SampleError: the file is missing, damaged or refused; names the sample and the path.
        """
        if self.plain is not None:
            return self.plain.view
        try:
            picture = read_image(self.path)
            size = picture.size
            moved = np.eye(3)[:2]
            if self.augmentation is not None:
                picture, moved = augment(picture, self.augmentation, self.seed)
            prepared = prepare(picture, self.spec)
        except (ValueError, OSError) as error:
            raise SampleError(str(error).removeprefix(f"{self.path}: "), self.sample_id, self.path) from error
        return View(prepared.pixels, chain(moved, prepared.to_spec), size)


@dataclass(frozen=True, eq=False, slots=True)
class Branch:
    """One line of tokens.

    Attributes:
        ids: int32 [N], placeholders expanded.
        labels: int32 [N]: the id where the token is to be learned, else -100. The first token has no label, for nothing
            comes before it.
        num_media: how many of the sample's media it shows, the first ones in reading order.
    """

    ids: np.ndarray
    labels: np.ndarray
    num_media: int


@dataclass(frozen=True, eq=False, slots=True)
class Encoded:
    """A sample as tokens; one branch, or one per answer where the template is not prefix-stable.

    `media` are all of the sample's, in reading order; `shortened` counts the characters cut off to make it fit.
    """

    id: str
    branches: tuple[Branch, ...]
    media: tuple[Media, ...]
    meta: Meta
    shortened: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the longest branch."""
        return max(len(branch.ids) for branch in self.branches)
