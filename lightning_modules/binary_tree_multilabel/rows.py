"""Rows of features, dense or sparse CSR alike: choosing, multiplying, averaging and keeping them in a checkpoint."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from components.variable_buffers import VariableBuffers

CHUNK_BYTES = 256 * 2**20  # of one matrix in between


def is_sparse(X: Tensor) -> bool:
    """Whether rows are sparse."""
    return X.layout == torch.sparse_csr


def csr(crow: Tensor, col: Tensor, values: Tensor, width: int) -> Tensor:
    """A sparse matrix (n, width) of its three parts."""
    return torch.sparse_csr_tensor(crow, col, values, (len(crow) - 1, width))


def as_scipy(X: Tensor) -> NDArray[np.float64] | sparse.csr_array:
    """X for scikit-learn."""
    if not is_sparse(X):
        return X.cpu().numpy()
    col, crow = (part.cpu().numpy().astype(np.int32) for part in (X.col_indices(), X.crow_indices()))  # what it takes
    return sparse.csr_array((X.values().cpu().numpy(), col, crow), shape=tuple(X.shape))


def take_rows(X: Tensor, rows: Tensor) -> Tensor:
    """Some rows of X, in the order of ``rows`` (k,) int64."""
    if not is_sparse(X):
        return X[rows]
    start, size = X.crow_indices()[rows], X.crow_indices().diff()[rows]
    crow = nn.functional.pad(size.cumsum(0), (1, 0))
    entries = torch.arange(int(crow[-1]), device=rows.device) + (start - crow[:-1]).repeat_interleave(size)
    return csr(crow, X.col_indices()[entries], X.values()[entries], X.shape[1])


def chunks(X: Tensor, columns: int) -> Iterator[Tensor]:
    """X in pieces of consecutive rows, so few that (rows, max(d, columns)) numbers stay below `CHUNK_BYTES`."""
    rows = max(1, CHUNK_BYTES // (8 * max(1, columns, X.shape[1])))
    if len(X) <= rows:
        yield X
        return
    for places in torch.arange(len(X), device=X.device).split(rows):
        yield take_rows(X, places)


def transposed(X: Tensor) -> Tensor:
    """Xᵀ, sparse CSR where X is."""
    return X.t().to_sparse_csr() if is_sparse(X) else X.t()


def products(X: Tensor, M: Tensor) -> Tensor:
    """X Mᵀ, dense (n, m), of rows (n, d) and (m, d); of two sparse ones the shorter is filled up, so take `chunks`."""
    if is_sparse(X) and is_sparse(M) and len(M) <= len(X):
        M = M.to_dense()
    if not is_sparse(M):
        return X @ M.t().contiguous()
    return (M @ (X.to_dense() if is_sparse(X) else X).t()).t()


def squared_norms(X: Tensor) -> Tensor:
    """||x||² of each row, (n,)."""
    if not is_sparse(X):
        return X.square().sum(dim=1)
    row = torch.arange(len(X), device=X.device).repeat_interleave(X.crow_indices().diff())
    return torch.zeros(len(X), dtype=X.dtype, device=X.device).index_add_(0, row, X.values().square())


def squared_distances(X: Tensor, M: Tensor) -> Tensor:
    """||x - m||², dense (n, m), as ||x||² - 2 x.m + ||m||²."""
    return (squared_norms(X)[:, None] - 2 * products(X, M) + squared_norms(M)[None]).clamp(min=0)


def centred_kernel(X: Tensor) -> Tensor:
    """(x - mean).(x' - mean) of each two rows, dense (n, n)."""
    kernel = torch.cat([products(X, piece) for piece in chunks(X, len(X))], dim=1)
    mean = kernel.mean(dim=0)
    return kernel.sub_(mean[:, None]).sub_((mean - mean.mean())[None])


def means(X: Tensor, group: Tensor, groups: int) -> Tensor:
    """The mean row of each group, (groups, d), sparse where X is; ``group`` (n,) counts from 0, none is empty."""
    size = torch.bincount(group, minlength=groups).to(X.dtype)
    if not is_sparse(X):
        return X.new_zeros(groups, X.shape[1]).index_add_(0, group, X) / size[:, None]
    row = group.repeat_interleave(X.crow_indices().diff())
    entries = torch.stack([row, X.col_indices()])
    shape = (groups, X.shape[1])
    return torch.sparse_coo_tensor(entries, X.values() / size[row], shape).coalesce().to_sparse_csr()


def stacked(above: Tensor, below: Tensor) -> Tensor:
    """Rows under rows of the same kind."""
    if not is_sparse(above):
        return torch.cat([above, below])
    crow = torch.cat([above.crow_indices(), above.crow_indices()[-1] + below.crow_indices()[1:]])
    col = torch.cat([above.col_indices(), below.col_indices()])
    return csr(crow, col, torch.cat([above.values(), below.values()]), above.shape[1])


class StoredRows(VariableBuffers, nn.Module):
    """Rows in a checkpoint, sparse where they are sparse; empty at first."""

    dense: Tensor
    crow: Tensor
    col: Tensor
    values: Tensor
    width: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_variable_buffer("dense", torch.float64, axes=2)
        self.register_variable_buffer("crow", torch.int64)
        self.register_variable_buffer("col", torch.int64)
        self.register_variable_buffer("values", torch.float64)
        self.register_buffer("width", torch.zeros((), dtype=torch.int64))

    def put(self, X: Tensor) -> None:
        """Keeps X (n, d) in place of what was there."""
        if is_sparse(X):
            self.crow, self.col, self.values = X.crow_indices().long(), X.col_indices().long(), X.values()
            self.width.fill_(X.shape[1])
        else:
            self.dense = X

    def append(self, X: Tensor) -> None:
        """Keeps X below what is there."""
        self.put(stacked(self.get(), X) if len(self) else X)

    def get(self) -> Tensor:
        """The rows."""
        return csr(self.crow, self.col, self.values, int(self.width)) if len(self.crow) else self.dense

    def __len__(self) -> int:
        return len(self.crow) - 1 if len(self.crow) else len(self.dense)
