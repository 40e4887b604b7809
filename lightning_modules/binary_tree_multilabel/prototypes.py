"""Mean-averaging estimation: the label vector whose training rows have the nearest mean."""

import torch
from torch import Tensor, nn

from components.variable_buffers import VariableBuffers
from lightning_modules.binary_tree_multilabel.rows import (
    StoredRows,
    chunks,
    means,
    squared_distances,
    squared_norms,
    take_rows,
)

# Distances that differ by less, relative to the squared lengths, are equal: rounding must not decide.
SAME = 1e-10


class Prototypes(VariableBuffers, nn.Module):
    """Mean training rows of label vectors, by leaf; within a leaf in the lexicographic order of the vectors."""

    label: Tensor  # (P, L) int64
    leaf: Tensor  # (P,) int64

    def __init__(self) -> None:
        super().__init__()
        self.register_variable_buffer("label", torch.int64, axes=2)
        self.register_variable_buffer("leaf", torch.int64)
        self.rows = StoredRows()

    def add(self, leaf: int, X: Tensor, Y: Tensor) -> int:
        """Adds the means of a leaf's training rows, X (n, d), for each different row of Y (n, L); how many."""
        vectors, group = torch.unique(Y, dim=0, return_inverse=True)  # in lexicographic order
        self.rows.append(means(X, group, len(vectors)))
        self.label = torch.cat([self.label, vectors]) if len(self.label) else vectors
        self.leaf = torch.cat([self.leaf, torch.full((len(vectors),), leaf, device=Y.device)])
        return len(vectors)

    def nearest(self, leaf: int, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Answers of one leaf to rows X (n, d).

        Ties go to the first vector in lexicographic order.

        Returns:
            label vectors (n, L); Euclidean distances to their means (n,); and for each label the negative
            distance to the nearest mean of a vector that holds it, (n, L), for a label that no vector of the
            leaf holds 1 less than the row's least score.
        """
        here = (self.leaf == leaf).nonzero()[:, 0]
        means_, vectors = take_rows(self.rows.get(), here), self.label[here]
        found, distances, scores = [], [], []
        for piece in chunks(X, len(here)):
            squared = squared_distances(piece, means_)
            least = squared.min(dim=1, keepdim=True).values
            lengths = squared_norms(piece)[:, None] + squared_norms(means_)[None]
            first = (squared <= least + SAME * lengths).to(torch.uint8).argmax(dim=1)  # the first of the equal ones
            found.append(vectors[first])
            distances.append(squared.gather(1, first[:, None])[:, 0].sqrt())
            scores.append(_label_scores(squared.sqrt(), vectors))
        return torch.cat(found), torch.cat(distances), torch.cat(scores)


def _label_scores(distance: Tensor, vectors: Tensor) -> Tensor:
    """Negative distance to the nearest mean that holds a label, (n, L), of distances (n, P) and vectors (P, L)."""
    scores = distance.new_empty(len(distance), vectors.shape[1])
    held = vectors.any(dim=0)
    for label in held.nonzero()[:, 0].tolist():
        scores[:, label] = -distance[:, vectors[:, label].bool()].amin(dim=1)
    least = scores[:, held].amin(dim=1) if held.any() else -distance.amin(dim=1)
    scores[:, ~held] = least[:, None] - 1
    return scores
