"""What a sample becomes on its way to the model: branches of tokens, and media that are read when first looked at."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from medmvl.core.schema import Meta, SampleError
from medmvl.imaging.augment import Augmentation, augment, augment_volume
from medmvl.imaging.cache import PreparedStore
from medmvl.imaging.features import Frame, Kept
from medmvl.imaging.fit import fit_volume
from medmvl.imaging.geometry import chain, identity
from medmvl.imaging.mirror import mirrored_picture, mirrored_volume
from medmvl.imaging.prepare import blank, normalise, prepare
from medmvl.imaging.read import read_picture, read_volume
from medmvl.imaging.spec import VisionSpec

IGNORE = -100
"""Label of a token that is not learned."""

Seed = tuple[int | str, ...]
"""(seed, epoch, media group, ...): what a random variation depends on."""


@dataclass(frozen=True, slots=True)
class View:
    """One picture or volume as its encoder sees it.

    Attributes:
        pixels: float32 [C, H, W] or [C, D, H, W].
        affine: float64 [2, 3] or [3, 4], sends (x, y) or (x, y, z) of the file's frame to the encoder's; where the view
            is a mirror's, to the place in the mirror.
        file_size: (height, width) or (depth, height, width) of the file's frame, in pixels or voxels.
    """

    pixels: np.ndarray
    affine: np.ndarray
    file_size: tuple[int, ...]


@dataclass(eq=False)
class Media:
    """One image or volume of a prompt, read when first looked at and kept as long as this object lives.

    `key` tells equal views apart from others: tower and path, whether it is blank or mirrored, and the seed if it is
    augmented. `token` is the placeholder's id, which stands `num_tokens` times in the ids. `question` is what a tower
    that reads text reads beside the view, in ids of its own tokenizer; None for all other towers. `store` saves fitting
    volumes again, and `kept` reading files and running the encoder; neither changes a value. A `blank` one has the
    frame of its file, and even grey in place of what the file shows. A `mirrored` one shows left and right swapped;
    boxes stay in the frame of the file as it lies on disk: one in a question is written where the mirror shows it, one
    that was found in the mirror lies where the file has it.
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
    store: PreparedStore | None = None
    blank: bool = False
    mirrored: bool = False
    kept: Kept | None = None
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
            view = self._volume() if self.spec.is_volume else self._picture()
        except (ValueError, OSError) as error:
            raise SampleError(str(error).removeprefix(f"{self.path}: "), self.sample_id, self.path) from error
        return replace(view, pixels=blank(self.spec)) if self.blank else view

    @property
    def features(self) -> np.ndarray:
        """What the tower's encoder made of the view, [tokens, width], as it is kept.

        Raises:
            SampleError: as `view`, or nothing is kept about the file as it is now.
        """
        return self._found[0]

    @property
    def frame(self) -> Frame:
        """How the view lies in the file; known without reading it where features are kept.

        Raises:
            SampleError: as `view` and `features`.
        """
        return Frame(self.view.affine, self.view.file_size) if self.kept is None else self._found[1]

    @property
    def shown(self) -> np.ndarray:
        """What the tower takes: the features where they are kept, else the pixels.

        Raises:
            SampleError: as `view` and `features`.
        """
        return self.view.pixels if self.kept is None else self.features

    @property
    def manner(self) -> str:
        """How the file is shown, for the key of its features."""
        return "blank" * self.blank + "mirrored" * self.mirrored

    @cached_property
    def _found(self) -> tuple[np.ndarray, Frame]:
        if self.kept is None:
            raise ValueError(f"no features of {self.path} are kept")
        try:
            return self.kept.load(self.path, self.manner, lambda: self.view)
        except SampleError:
            raise
        except (ValueError, OSError) as error:
            raise SampleError(str(error).removeprefix(f"{self.path}: "), self.sample_id, self.path) from error

    def _picture(self) -> View:
        picture = read_picture(self.path)
        size, moved = picture.size, identity(2)
        if self.mirrored:
            picture, moved = mirrored_picture(picture)
        if self.augmentation is not None:
            picture, varied = augment(picture, self.augmentation, self.seed)
            moved = chain(moved, varied)
        prepared = prepare(picture, self.spec)
        return View(prepared.pixels, chain(moved, prepared.to_spec), size)

    def _volume(self) -> View:
        """Volumes vary after they were fitted, so that what was fitted once serves every epoch."""
        if self.store is None:
            fitted = fit_volume(read_volume(self.path), self.spec)
        else:
            fitted = self.store.fitted(self.path, self.spec)
        if self.mirrored:
            fitted = mirrored_volume(fitted, self.spec.orientation, self.path)
        values, moved = fitted.values, identity(3)
        if self.augmentation is not None:
            orientation = self.spec.orientation
            values, moved = augment_volume(values, self.augmentation, self.seed, fitted.spacing, orientation)
        return View(normalise(values, self.spec), chain(fitted.to_spec, moved), fitted.file_size)


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
