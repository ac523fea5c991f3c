"""Section 4 written slowly: thresholding again and again, pixel by pixel, one picture after another."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def iou(a, b, extra: int = 0) -> float:
    """`extra` 1: corners are pixels that belong to the box."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + extra
    height = min(a[3], b[3]) - max(a[1], b[1]) + extra
    shared = max(width, 0) * max(height, 0)

    def area(box):
        return max(box[2] - box[0] + extra, 0) * max(box[3] - box[1] + extra, 0)

    union = area(a) + area(b) - shared
    return shared / union if union > 0 and shared > 0 else 0.0


def half_open_boxes(heat, threshold, components):
    """Boxes of the 8-connected components of the pixels above a share of the maximum; the whole map where there is none."""
    heat = np.asarray(heat, np.float64)
    height, width = heat.shape
    whole = [(0, 0, width, height)]
    if not np.isfinite(heat).all() or heat.max() == heat.min() or heat.max() <= 0:
        return whole
    labels, count = ndimage.label(heat > threshold * heat.max(), np.ones((3, 3)))
    found = []
    for label in range(1, count + 1):  # in raster order of their first pixels
        rows, columns = np.nonzero(labels == label)
        found.append((len(rows), (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)))
    if not found:
        return whole
    return [max(found, key=lambda f: f[0])[1]] if components == "largest" else [box for _, box in found]


def reference_boxes(heat, threshold, components):
    """The published way: 8 bits, OpenCV's contours, the largest by enclosed area, right and bottom cut at the last pixel."""
    import cv2

    heat = np.asarray(heat, np.float64)
    image = np.expand_dims((heat * 255).astype(np.uint8), 2)
    _, mask = cv2.threshold(image, int(threshold * np.max(image)), 255, cv2.THRESH_BINARY)
    contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
    if len(contours) == 0:
        return [(0, 0, 0, 0)]
    if components == "largest":
        contours = [max(contours, key=cv2.contourArea)]
    boxes = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        boxes.append((x, y, min(x + w, heat.shape[1] - 1), min(y + h, heat.shape[0] - 1)))
    return boxes


def box_accuracy(maps, boxes, thresholds, ious, components, convention):
    """Hits `[iou][picture][threshold]`."""
    find, extra = (half_open_boxes, 0) if convention == "half-open" else (reference_boxes, 1)
    hits = {bar: [] for bar in ious}
    for heat, truth in zip(maps, boxes, strict=True):
        best = [
            max((iou(a, b, extra) for a in find(heat, t, components) for b in truth), default=-1)
            for t in thresholds
        ]
        for bar in ious:
            hits[bar].append([value >= bar for value in best])
    return hits


def pixel_average_precision(maps, masks, thresholds) -> float:
    """Pooled pixels at or above each threshold, from the highest down; what lies below the lowest is left out."""
    scores = np.concatenate([np.asarray(m, np.float64).ravel() for m in maps])
    truth = np.concatenate([np.asarray(m).ravel() for m in masks])
    scores, truth = scores[truth != 255], truth[truth != 255]
    objects = sum(1 for s, t in zip(scores, truth, strict=True) if t == 1 and s >= min(thresholds))
    area, before = 0.0, 0.0
    for threshold in [1.0, *sorted(thresholds, reverse=True)]:
        inside = sum(1 for s, t in zip(scores, truth, strict=True) if s >= threshold and t == 1)
        both = sum(1 for s in scores if s >= threshold)
        recall = inside / objects
        if both:
            area += inside / both * (recall - before)
        before = recall
    return 100 * area
