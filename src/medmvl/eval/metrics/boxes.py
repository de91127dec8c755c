"""Metrics on boxes: continuous corners (an area is (x1-x0)*(y1-y0), no "+1"), in the file's own frame."""

from collections.abc import Sequence
from math import prod


def iou(prediction: Sequence[float], reference: Sequence[float]) -> float:
    """Return intersection over union of two boxes of 4 or 6 coordinates, lower corner first; 0 if both are empty.

    Raises:
        ValueError: the boxes differ in dimension.
    """
    axes = len(reference) // 2
    if len(prediction) != len(reference) or axes not in (2, 3):
        raise ValueError(f"boxes need 4 or 6 coordinates each, got {len(prediction)} and {len(reference)}")
    shared = prod(
        max(0.0, min(prediction[axes + i], reference[axes + i]) - max(prediction[i], reference[i])) for i in range(axes)
    )
    union = sum(prod(box[axes + i] - box[i] for i in range(axes)) for box in (prediction, reference)) - shared
    return shared / union if union > 0 else 0.0


def iou_mean(prediction: Sequence[float], reference: Sequence[float]) -> float:
    """IoU of one sample; its mean over samples is the score (mIoU). An answer without a box counts as 0."""
    return iou(prediction, reference)


def acc_iou50(prediction: Sequence[float], reference: Sequence[float]) -> float:
    """1 if the IoU is at least 0.5 (RefCOCO's convention, >=), else 0."""
    return float(iou(prediction, reference) >= 0.5)
