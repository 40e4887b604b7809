"""Top-k accuracy as action-recognition papers print it: over all clips alike, in percent."""

from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy


class TopKAccuracy(MulticlassAccuracy):
    """Share of samples whose class is among the k best scores, 0-100.

    Micro average: every sample counts the same. The library's default, the mean over classes,
    gives other numbers on unbalanced sets.

    Args:
        num_classes: C.
        top_k: k.
        ignore_index: label of samples that do not count, or None.
    """

    def __init__(self, num_classes: int, top_k: int = 1, ignore_index: int | None = None) -> None:
        super().__init__(
            num_classes=num_classes,
            top_k=top_k,
            average="micro",
            ignore_index=ignore_index,
            validate_args=False,  # the checks wait for the GPU at every step
        )

    def compute(self) -> Tensor:
        """The accuracy in percent."""
        return super().compute() * 100.0
