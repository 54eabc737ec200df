"""What a classifier's training minimizes: functions of logits, labels and features, each with its source."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, normalize

from runtime.errors import OlivalError

# Distances are kept above this before their root is taken: the root's slope is infinite at 0, where two texts are alike
_LEAST_SQUARE = 1e-12


class CrossEntropy(nn.Module):
    """-log p of the label, weighted by class and with smoothed targets (Szegedy et al. 2016, arXiv:1512.00567).

    forward: logits (batch, classes) float, labels (batch,) int64, features (batch, hidden) -> scalar, in nats. The mean
    over the batch, or with weights the weighted mean; smoothing s puts s / classes on every class and 1 - s on the
    label's, as in torch.
    """

    weight: torch.Tensor | None

    def __init__(self, weight: torch.Tensor | None = None, label_smoothing: float = 0.0) -> None:
        """`weight`: of each class, float32 (classes,)."""
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, labels, self.weight, label_smoothing=self.label_smoothing)


class FocalLoss(nn.Module):
    """(1 - p)^gamma * -log p of the label, p by softmax (Lin et al. 2017, arXiv:1708.02002, equations 4 and 5).

    forward as in CrossEntropy, which it is at gamma 0: with weights (alpha in the paper) it is the weighted mean.
    """

    weight: torch.Tensor | None

    def __init__(self, gamma: float = 2.0, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        surprise = cross_entropy(logits, labels, reduction="none")  # -log p
        # -expm1(-s) is 1 - p without cancellation; the power's slope is infinite at 0 for a gamma below 1
        losses = (-torch.expm1(-surprise)).clamp_min(_LEAST_SQUARE) ** self.gamma * surprise
        if self.weight is None:
            return losses.mean()
        shares = self.weight[labels]
        return (shares * losses).sum() / shares.sum()


class ContrastiveLoss(nn.Module):
    """Cross-entropy, and beside it a margin between the features of texts with different labels.

    (1 - weight) * cross-entropy + weight * the mean over all pairs of the batch of D^2 / 2 for two texts of one label
    and max(0, margin - D)^2 / 2 otherwise (Hadsell, Chopra and LeCun 2006, equation 4). D is the distance of the
    features scaled to length 1, so it lies in 0..2. The two are summed as in Gunel et al. 2021 (arXiv:2011.01403): the
    pairs alone would leave the head as it is. forward as in CrossEntropy; a batch of one has no pairs, which count 0.
    """

    def __init__(self, margin: float = 1.0, weight: float = 0.5) -> None:
        super().__init__()
        self.margin, self.weight = margin, weight

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        units = normalize(features.float(), dim=-1)
        first, second = torch.triu_indices(len(units), len(units), offset=1, device=units.device)
        squares = (units[first] - units[second]).square().sum(dim=-1)
        apart = (self.margin - squares.clamp_min(_LEAST_SQUARE).sqrt()).clamp_min(0).square()
        pairs = torch.where(labels[first] == labels[second], squares, apart) / 2
        contrast = pairs.sum() / max(1, len(pairs))
        return (1 - self.weight) * cross_entropy(logits, labels) + self.weight * contrast


class DistillationLoss(nn.Module):
    """Cross-entropy, and beside it the distance from a teacher's probabilities (Hinton et al. 2015, arXiv:1503.02531).

    (1 - weight) * cross-entropy + weight * T^2 * KL(teacher || student), both softened by the temperature T; T^2 keeps
    the gradients of the two alike in size. forward as in CrossEntropy, with the teacher's logits (batch, classes).
    """

    def __init__(self, temperature: float = 2.0, weight: float = 0.5) -> None:
        super().__init__()
        self.temperature, self.weight = temperature, weight

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, features: torch.Tensor, teacher: torch.Tensor
    ) -> torch.Tensor:
        student = (logits / self.temperature).log_softmax(dim=-1)
        wanted = (teacher.to(logits) / self.temperature).log_softmax(dim=-1)
        distance = kl_div(student, wanted, reduction="batchmean", log_target=True)
        return (1 - self.weight) * cross_entropy(logits, labels) + self.weight * self.temperature**2 * distance


class BinaryCrossEntropy(nn.Module):
    """-log p of each label that a text has and -log (1 - p) of each that it has not, p by sigmoid; the mean over all.

    forward: logits (batch, labels) float, labels (batch, labels) of 0 and 1, features (batch, hidden) -> scalar, in
    nats. `weight`, float32 (labels,), multiplies the first kind, as torch's pos_weight.
    """

    weight: torch.Tensor | None

    def __init__(self, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy_with_logits(logits, labels.to(logits), pos_weight=self.weight)


class UserLoss(nn.Module):
    """A loss from a user's file, called with logits and labels, and with features if its forward takes three values."""

    def __init__(self, loss: nn.Module, name: str, takes_features: bool) -> None:
        super().__init__()
        self.loss, self.name, self.takes_features = loss, name, takes_features

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Raises OlivalError when the user's code fails or returns anything but a scalar with a gradient."""
        given = (logits, labels, features) if self.takes_features else (logits, labels)
        try:
            value: Any = self.loss(*given)
        except Exception as error:  # somebody else's code raises anything; Olive fails a run only on ValueError and kin
            raise OlivalError(f"loss '{self.name}': {type(error).__name__}: {error}") from error
        if not isinstance(value, torch.Tensor) or value.dim() or (logits.requires_grad and not value.requires_grad):
            found = f"shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise OlivalError(f"loss '{self.name}': must return a scalar tensor with a gradient, but returned {found}")
        return value


def balanced_weights(labels: list[int], classes: int) -> torch.Tensor:
    """rows / (classes with rows * rows of the class), float32 (classes,): each class weighs the same in all.

    The heuristic of King and Zeng 2001 as scikit-learn has it (`class_weight="balanced"`). A class without rows gets 1.
    """
    counts = torch.bincount(torch.tensor(labels), minlength=classes).double()
    weights = len(labels) / (counts.count_nonzero() * counts)
    return torch.where(counts > 0, weights, 1.0).float()


def balanced_positives(labels: list[list[int]], classes: int) -> torch.Tensor:
    """Rows without a label / rows with it, float32 (labels,): both sides of each label weigh the same in all.

    A label that no row or every row has gets 1.
    """
    counts = torch.bincount(torch.tensor([label for row in labels for label in row]), minlength=classes).double()
    ratios = (len(labels) - counts) / counts
    return torch.where((counts > 0) & (counts < len(labels)), ratios, 1.0).float()
