"""Metrics on boxes, in the file's own frame: four coordinates in pictures, six in volumes, lower corner first.

Unless its name says otherwise a metric takes corners as continuous: a side is x1 - x0 long, no "+1". An answer without
a box, or whose box is broken (another count of coordinates, infinite ones, corners in the wrong order), scores 0 in all
of them; `box_valid` counts it.
"""

from collections.abc import Callable, Sequence
from math import isfinite, prod

Box = Sequence[float]


def iou(prediction: Box, reference: Box, plus: float = 0.0) -> float:
    """Return intersection over union of two boxes of 4 or 6 coordinates; 0 if both are empty.

    Args:
        prediction, reference: the boxes, lower corner first.
        plus: added to each length: 1 where the upper corner is the last pixel inside.

    Raises:
        ValueError: the boxes differ in dimension.
    """
    axes = len(reference) // 2
    if len(prediction) != len(reference) or len(reference) not in (4, 6):
        raise ValueError(f"boxes need 4 or 6 coordinates each, got {len(prediction)} and {len(reference)}")
    shared = prod(
        max(0.0, min(prediction[axes + i], reference[axes + i]) - max(prediction[i], reference[i]) + plus)
        for i in range(axes)
    )
    union = sum(prod(box[axes + i] - box[i] + plus for i in range(axes)) for box in (prediction, reference)) - shared
    return shared / union if union > 0 else 0.0


def box_valid(prediction: Box, reference: Box) -> float:
    """1 if the answer holds a box that can be compared with the reference, else 0.

    Raises:
        ValueError: the reference is no box.
    """
    if len(reference) not in (4, 6):
        raise ValueError(f"a true box has 4 or 6 coordinates, got {len(reference)}")
    if isinstance(prediction, str) or len(prediction) != len(reference) or not all(map(isfinite, prediction)):
        return 0.0
    axes = len(reference) // 2
    return float(all(low <= high for low, high in zip(prediction[:axes], prediction[axes:], strict=True)))


def iou_mean(prediction: Box, reference: Box) -> float:
    """IoU of one sample; its mean over samples is the score (mIoU)."""
    return iou(prediction, reference) if box_valid(prediction, reference) else 0.0


def _at_least(threshold: float) -> Callable[[Box, Box], float]:
    def accuracy(prediction: Box, reference: Box) -> float:
        return float(iou_mean(prediction, reference) >= threshold)

    accuracy.__doc__ = f"1 if the IoU is at least {threshold} (lmms-eval's RefCOCO, >=), else 0."
    return accuracy


acc_iou10, acc_iou30, acc_iou50, acc_iou70, acc_iou90 = map(_at_least, (0.1, 0.3, 0.5, 0.7, 0.9))


def acc_centre(prediction: Box, reference: Box) -> float:
    """1 if the centre of the predicted box lies in the true one or on its edge (lmms-eval's Center_ACC), else 0."""
    if not box_valid(prediction, reference):
        return 0.0
    axes = len(reference) // 2
    centre = [(prediction[i] + prediction[axes + i]) / 2 for i in range(axes)]
    return float(all(reference[i] <= centre[i] <= reference[axes + i] for i in range(axes)))


def iou_mean_unimed(prediction: Box, reference: Box) -> float:
    """IoU as Uni-Med and MiniGPT-v2 have it: both corner pixels are inside, so each side is one longer ("+1").

    It is above `iou_mean`, the more so the smaller the boxes: two pixels side by side, [0, 0, 1, 1] and [1, 0, 2, 1],
    share a third.
    """
    return iou(prediction, reference, plus=1.0) if box_valid(prediction, reference) else 0.0


def acc_iou50_unimed(prediction: Box, reference: Box) -> float:
    """1 if `iou_mean_unimed` is above 0.5 (strictly, as in Uni-Med and MiniGPT-v2), else 0."""
    return float(iou_mean_unimed(prediction, reference) > 0.5)


def iou_mean_m3d(prediction: Box, reference: Box) -> float:
    """Intersection over the smallest box around both, which M3D calls IoU: never above `iou_mean`.

    Source: M3D LaMed/src/utils/utils.py. It notes -1 for an answer without a box and says of no mean what becomes of
    it; here such an answer is 0, as everywhere. Its 1e-6 in the divisor, meant for shares of the frame, is left out.
    """
    if not box_valid(prediction, reference):
        return 0.0
    axes = len(reference) // 2
    shared = prod(
        max(0.0, min(prediction[axes + i], reference[axes + i]) - max(prediction[i], reference[i])) for i in range(axes)
    )
    around = prod(
        max(prediction[axes + i], reference[axes + i]) - min(prediction[i], reference[i]) for i in range(axes)
    )
    return shared / around if around > 0 else 0.0
