"""What every header of a volume must tell, whatever its format: a size that fits, and where its axes point."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from medmvl.core.log import get_logger
from medmvl.core.schema import split_fragment
from medmvl.imaging.picture import ImageError

DEFLATE_LIMIT = 1032
"""Nothing that gzip or zlib packs becomes smaller than by this factor."""

SHEAR = 1e-3
"""Axes whose unit vectors have a larger scalar product (0.06 degrees from a right angle) are sheared."""

ORIENTATION_HINT = (
    "left and right are not guessed. If you know where its axes point, say so in the path, slices, rows and columns "
    "in this order: '{name}#orientation=SPL' for indices that grow to superior, posterior and the patient's left"
)

_log = get_logger(__name__)
_TOLD = 10  # files, of each subject
_WARNED: defaultdict[str, set[str]] = defaultdict(set)

_VECTORS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def check_length(file: Path, found: int, needed: int, data: Path | None = None) -> None:
    """Refuse voxels that end before byte `needed`; `data` is the file that holds them, where it is another one.

    Raises:
        ImageError: names both numbers.
    """
    if found < needed:
        where = "" if data in (None, file) else f"its data file {data} "
        raise ImageError(
            file, f"{where}is cut off: the header asks for {needed:,} bytes, at most {found:,} are there; get it again"
        )


def axes_of(file: Path, matrix: np.ndarray, name: str) -> tuple[tuple[float, float, float], tuple[float, ...]]:
    """Return spacing (z, y, x) and direction (9 numbers) of a header's matrix.

    Args:
        file: named in errors.
        matrix: [3, 3], its columns are the steps along x, y and z in the patient (LPS), in mm.
        name: what the header calls it.

    Raises:
        ImageError: a step that is no number or has no length, or axes that are not at right angles.
    """
    if not np.isfinite(matrix).all():
        raise ImageError(file, f"its {name} holds NaN or infinite numbers; repair the header")
    lengths = np.linalg.norm(matrix, axis=0)
    if lengths.min() <= 0:
        axis = "xyz"[int(lengths.argmin())]
        raise ImageError(
            file, f"its {name} says that voxels have no extent along {axis} (spacing 0); repair the header"
        )
    unit = matrix / lengths
    cosines = np.abs(unit.T @ unit - np.eye(3))
    if cosines.max() > SHEAR:
        a, b = np.unravel_index(cosines.argmax(), (3, 3))
        angle = 90 - np.degrees(np.arccos(min(1.0, cosines.max())))
        raise ImageError(
            file,
            f"its {name} is sheared: axes {'xyz'[a]} and {'xyz'[b]} are {angle:.2f} degrees off a right angle (as "
            "after a tilted CT gantry), and readers that straighten it deform it; resample it to a rectangular grid",
        )
    return (float(lengths[2]), float(lengths[1]), float(lengths[0])), tuple(unit.T.ravel().tolist())


def stated_direction(file: Path, letters: str) -> tuple[float, ...]:
    """Return the direction (unit vectors along x, y, z) of an orientation such as "SPL" (z, y, x), stated by the user.

    Raises:
        ImageError: not one letter each of S/I, A/P and L/R.
    """
    if sorted(letters.translate(str.maketrans("IAR", "SPL"))) != ["L", "P", "S"]:
        raise ImageError(
            file,
            f"orientation {letters!r} is not one letter each of S/I, A/P and L/R: where slice, row and column indices "
            "grow to, as in 'SPL'",
        )
    return tuple(float(number) for letter in letters[::-1] for number in _VECTORS[letter])


def warn_once(path: str | Path, subject: str, doubt: str) -> None:
    """Warn about a file, once per process and subject: training reads it in every epoch, under one address or more.

    A whole data set in doubt is told by its first files.
    """
    told = _WARNED[subject]
    file = split_fragment(str(path))[0]
    if file in told or len(told) >= _TOLD:
        return
    told.add(file)
    more = f" (further files in this doubt about their {subject} are not told)" if len(told) == _TOLD else ""
    _log.warning("%s: %s%s", path, doubt, more)
