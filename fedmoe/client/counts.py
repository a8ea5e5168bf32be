"""What a client counts when it evaluates itself. Counts of clients add up; no label of an example leaves the client.

Shape letters: b images, C classes, B bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 15  # of confidence, as in Guo et al., ICML 2017 (arXiv 1706.04599)


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """How often examples of each class (rows) are taken for each class (columns): logits [b, C] -> [C, C], int64."""
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(dim=1)
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def calibration(logits: Tensor, labels: Tensor) -> Tensor:
    """For each of B bins of confidence, equal in width: examples, sum of confidences, right ones. [B, 3], float64.

    The confidence is the largest softmax probability; bin i holds those in (i / B, (i + 1) / B].
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    place = (torch.ceil(confidence * BINS) - 1).clamp(0, BINS - 1).long()
    rows = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).double()], dim=1)  # [b, 3]
    return torch.zeros(BINS, 3, dtype=torch.float64).index_add(0, place, rows)


def gate_sums(entropy: Tensor, top_share: Tensor, without_experts: Tensor, labels: Tensor) -> Tensor:
    """Sums over images of a gate's normalized entropy [b] and largest weight [b], and how many logits [b, C] without
    the experts are right: [3], float64."""
    right = without_experts.argmax(dim=1) == labels
    return torch.stack([entropy.double().sum(), top_share.double().sum(), right.double().sum()])


def right_and_all(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the logits [b, C] are right, and how many there are: [2], int64."""
    return torch.stack([(logits.argmax(dim=1) == labels).sum(), torch.tensor(len(labels))])
