"""Fully connected CRF over an image's pixels: mean field with Gaussian filters on a permutohedral lattice.

Kraehenbuehl and Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials"
(NeurIPS 2011); Adams, Baek and Davis, "Fast high-dimensional filtering using the permutohedral
lattice" (Eurographics 2010).
"""

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from runs.errors import InputError


@dataclass(frozen=True)
class CRFSettings:
    """What a dense CRF is made of.

    Attributes:
        spatial_sigma: standard deviation of the smoothness kernel, pixels.
        spatial_weight: its weight.
        bilateral_sigma_xy: standard deviation of the appearance kernel in space, pixels.
        bilateral_sigma_rgb: the same in colour, of 0..255.
        bilateral_weight: its weight.
        steps: mean-field steps.
        confidence: probability, 1/n..1, that a given label is right; only `refine_labels` uses it.
    """

    spatial_sigma: float
    spatial_weight: float
    bilateral_sigma_xy: float
    bilateral_sigma_rgb: float
    bilateral_weight: float
    steps: int
    confidence: float

    def __post_init__(self) -> None:
        for name in ("spatial_sigma", "bilateral_sigma_xy", "bilateral_sigma_rgb"):
            if getattr(self, name) <= 0:
                raise InputError(f"a dense CRF needs {name} above 0, not {getattr(self, name)}")
        if not 0 < self.confidence < 1:
            raise InputError(f"a dense CRF needs a confidence between 0 and 1, not {self.confidence}")


class SparseProduct:
    """Products of one sparse matrix with dense ones, each entry of a product summed along its row.

    Args:
        columns: (K,) int32, column of each entry, row by row.
        weights: (K,) float32, the entries.
        starts: (R + 1,) int32, where each row begins, and the end.
        width: number of columns.
    """

    def __init__(self, columns: Tensor, weights: Tensor, starts: Tensor, width: int) -> None:
        self.columns, self.weights, self.starts = columns, weights, starts
        self.matrix = None
        if weights.device.type == "cpu" and torch.backends.mkl.is_available():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the layout is in beta
                self.matrix = torch.sparse_csr_tensor(starts, columns, weights, (len(starts) - 1, width))

    def __call__(self, values: Tensor) -> Tensor:
        """(width, L) float32 to (R, L), in float32 under autocast too."""
        with torch.autocast(values.device.type, enabled=False):
            values = values.float()
            if values.shape[1] == 1 and self.matrix is not None:  # twice as fast as the other way, for one vector
                return (self.matrix @ values.squeeze(1))[:, None]
            return embedding_bag(
                self.columns, values, self.starts, per_sample_weights=self.weights, mode="sum", include_last_offset=True
            )


class Lattice:
    """Gaussian filter over fixed points: sums of v_j exp(-||f_i - f_j||^2 / 2) over all j, i included.

    A point is written as a weighted mean of the d + 1 corners of the lattice simplex around it. To
    filter is to add the points' values up at their corners, to blur along the d + 1 axes of the
    lattice, and to read the corners out again. The corners are found once, for all calls.

    A corner has d + 1 integer coordinates of sum 0 that leave the same remainder modulo d + 1. The
    remainder and d of the quotients make its key, which for photographs fits into 32 bits.

    Args:
        features: the points, (d, N) float32.
    """

    def __init__(self, features: Tensor) -> None:
        d, points = features.shape
        keys, weights, strides, block = _corners(features)
        # Adams et al.'s scale of the blurred sum, half of it in and half of it out.
        weights *= 1 / math.sqrt(1 + 2.0**-d)
        keys, order = keys.view(-1).sort(stable=True)
        starts = torch.ones_like(keys, dtype=torch.bool)
        torch.ne(keys[1:], keys[:-1], out=starts[1:])
        vertex = starts.cumsum(0, dtype=torch.int32).sub_(1)
        starts = starts.nonzero().squeeze(1)
        self.count = len(starts)

        # One vertex more than there are, always 0, stands for neighbours that are not there.
        end = starts.new_tensor([len(order), len(order)])
        self.add_up = SparseProduct(
            order.int().remainder_(points),
            weights.view(-1).index_select(0, order),
            torch.cat([starts, end]).int(),
            points,
        )
        half = torch.tensor([1, 0.5, 0.5], device=features.device).repeat(self.count + 1)
        each_three = torch.arange(0, len(half) + 1, 3, dtype=torch.int32, device=features.device)
        self.blurs = [
            SparseProduct(three.view(-1), half, each_three, self.count + 1)
            for three in _neighbours(keys[starts], strides, block)
        ]
        vertex = torch.empty_like(vertex).scatter_(0, order, vertex).view(d + 1, points)
        self.read_out = SparseProduct(
            vertex.T.reshape(-1),
            weights.T.reshape(-1),
            torch.arange(0, len(order) + 1, d + 1, dtype=torch.int32, device=features.device),
            self.count + 1,
        )

    def __call__(self, values: Tensor) -> Tensor:
        """Filters each column of (N, L) float32 by itself."""
        held = self.add_up(values)
        for blur in self.blurs:
            held = blur(held)
        return self.read_out(held)

    def normalise(self, weight: float) -> None:
        """From now on filters by weight * D^-1/2 K D^-1/2, with D the row sums of K."""
        factor = self(torch.ones_like(self.read_out.weights.view(-1, len(self.blurs))[:, :1]))
        factor = math.sqrt(weight) * factor.rsqrt_().squeeze(1)
        self.add_up.weights.mul_(factor.index_select(0, self.add_up.columns))
        self.read_out.weights.view(-1, len(self.blurs)).mul_(factor[:, None])


def _corners(features: Tensor) -> tuple[Tensor, Tensor, list[int], int]:
    """The simplex around each point: keys and weights of its corners, and how keys are packed.

    Returns:
        Keys, (d + 1, N) integers; weights, (d + 1, N) float32 of sum 1; the stride of each of the d
        packed quotients; the number of keys of one remainder.
    """
    d, count = features.shape
    place = features.new_empty(d + 1, count)  # on the plane of sum 0, spread so that the blur has unit variance
    running = features.new_zeros(count)
    for axis in range(d, 0, -1):
        step = features[axis - 1] * (math.sqrt(2 / 3) * (d + 1) / math.sqrt(axis * (axis + 1)))
        torch.sub(running, step, alpha=axis, out=place[axis])
        running = running + step
    place[0] = running

    # The nearest point of remainder 0; where its sum is not 0, the worst rounded axes go one step back.
    place /= d + 1
    quotient = place.round()
    excess = quotient.sum(0).to(torch.int8)
    rest = place - quotient
    rank = excess.repeat(d + 1, 1)
    for i in range(d + 1):
        for j in range(i + 1, d + 1):
            less = rest[i] < rest[j]
            rank[i] += less
            rank[j] += ~less
    turn = (rank < 0).to(torch.int8) - (rank > d).to(torch.int8)
    rank += turn * (d + 1)
    rest -= turn
    quotient = quotient.to(torch.int32) + turn

    # Barycentric weights: differences of the sorted remainders.
    by_rank = (d - rank).long()  # 0 is the axis that rounding took the most from
    ordered = torch.empty_like(rest).scatter_(0, by_rank, rest)
    weights = ordered.clone()
    weights[1:] -= ordered[:-1]
    weights[0] += 1 - ordered[d]

    low, high = quotient[:d].amin(1).tolist(), quotient[:d].amax(1).tolist()
    # A corner's quotient is at most one below its point's; a neighbour's one further off.
    sizes = [last - first + 4 for first, last in zip(low, high, strict=True)]
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(d)]
    block = math.prod(sizes)
    if (d + 1) * block >= 2**63:
        raise InputError(f"the image spans too many standard deviations ({block:.0e} cells): give larger sigmas")
    dtype = torch.int32 if (d + 1) * block < 2**31 else torch.int64
    steps = torch.tensor([*strides, 0], dtype=dtype, device=features.device)[:, None]
    keys = torch.empty(d + 1, count, dtype=dtype, device=features.device)
    keys[0] = sum(quotient[axis].to(dtype).sub_(low[axis] - 2) * strides[axis] for axis in range(d))
    # From corner r to r + 1 every coordinate grows by one, but the next in rank falls by d.
    falls = torch.empty_like(keys).scatter_(0, by_rank, steps.expand(-1, count))
    for corner in range(1, d + 1):
        torch.sub(keys[corner - 1], falls[corner - 1], out=keys[corner])
        keys[corner] += block
    return keys, weights, strides, block


def _neighbours(vertices: Tensor, strides: list[int], block: int) -> list[Tensor]:
    """For each axis (M + 1, 3) int32: each of the M vertices, the one before it and the one after it.

    M stands for a vertex that is not there. One step along an axis lowers every coordinate by one
    and raises the axis' own by d: the remainder falls by one, or from 0 to d with quotients one lower.
    """
    d, count = len(strides), len(vertices)
    here = torch.arange(count + 1, dtype=torch.int32, device=vertices.device)
    none = here[-1:]
    wraps = vertices < block
    axes = []
    for stride in (*strides, 0):
        wanted = vertices + torch.where(wraps, d * block - sum(strides) + stride, stride - block).to(vertices.dtype)
        found = torch.searchsorted(vertices, wanted, out_int32=True).clamp_(max=count - 1)
        after = torch.cat([torch.where(vertices.index_select(0, found) == wanted, found, none), none])
        before = torch.full_like(here, count).scatter_(0, after.long(), here)
        before[-1] = count
        axes.append(torch.stack([here, before, after], dim=1))
    return axes


def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """x and y of all pixels, row by row, (2, H * W) float32."""
    y = torch.arange(height, device=device, dtype=torch.float32).repeat_interleave(width)
    x = torch.arange(width, device=device, dtype=torch.float32).repeat(height)
    return torch.stack([x, y])


@lru_cache(maxsize=4)
def _spatial_kernel(height: int, width: int, sigma: float, weight: float, device: torch.device) -> Lattice:
    """The smoothness kernel, which all images of one size share."""
    kernel = Lattice(_positions(height, width, device) / sigma)
    kernel.normalise(weight)
    return kernel


class DenseCRF:
    """The mean field of one image; its lattices are built once, for any number of calls.

    Energy of a labelling: sum of the unary energies, and for every two pixels of different labels
    (Potts) the sum over two Gaussian kernels of weight times the normalised kernel D^-1/2 K D^-1/2,
    with D the row sums of K: one kernel over position, one over position and colour.

    Args:
        image: (H, W, 3) uint8, colours 0..255; the work is done on its device.
        settings: kernels and steps.

    Raises:
        InputError: the image is of another type or shape. Colours of 0..1 would all look alike to a
            colour deviation made for 0..255.
    """

    def __init__(self, image: Tensor, settings: CRFSettings) -> None:
        if image.dtype != torch.uint8:
            raise InputError(f"a dense CRF needs an image of uint8 colours 0..255, not {image.dtype}")
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(f"a dense CRF needs an image of shape (height, width, 3), not {tuple(image.shape)}")
        self.height, self.width = image.shape[:2]
        self.steps = settings.steps
        position = _positions(self.height, self.width, image.device)
        colour = image.reshape(-1, 3).T / settings.bilateral_sigma_rgb
        self.kernels: list[Lattice] = []
        if settings.spatial_weight:
            kernel = _spatial_kernel(
                self.height, self.width, settings.spatial_sigma, settings.spatial_weight, image.device
            )
            self.kernels.append(kernel)
        if settings.bilateral_weight:
            kernel = Lattice(torch.cat([position / settings.bilateral_sigma_xy, colour]))
            kernel.normalise(settings.bilateral_weight)
            self.kernels.append(kernel)
        # What all labels together send: one label's part is this less that of the others.
        self.sent_by_ones = self.messages(torch.ones_like(position[0])[:, None])

    def messages(self, values: Tensor) -> Tensor:
        """Both normalised kernels, weighted and summed, on each column of ``values`` (N, L)."""
        return sum((kernel(values) for kernel in self.kernels), torch.zeros_like(values))

    @torch.no_grad()
    def __call__(self, unary: Tensor) -> Tensor:
        """The labels' probabilities after all mean-field steps; no gradient goes through them.

        Args:
            unary: energies (negative log probabilities), (n, H, W) float32, on the image's device.

        Returns:
            (n, H, W) float32, of sum 1 over the labels.

        Raises:
            InputError: the energies are of another size than the image.
        """
        n = len(unary)
        if unary.shape[1:] != (self.height, self.width):
            raise InputError(
                f"a dense CRF of an image of {self.height} x {self.width} pixels got energies of "
                f"{' x '.join(map(str, unary.shape[1:]))}"
            )
        if n == 1:
            return torch.ones_like(unary)
        # Probabilities sum to 1: n - 1 labels are filtered, and the last one's logit is kept at 0.
        logits = unary.new_zeros(n, self.height * self.width)
        torch.sub(unary[-1], unary[:-1], out=logits[:-1].view(n - 1, self.height, self.width))
        given = logits[:-1] - self.sent_by_ones.T
        q = logits.softmax(0)
        for _ in range(self.steps):
            # Stacked, not transposed: a single column would keep strides that embedding_bag is slow with.
            received = self.messages(torch.stack(tuple(q[:-1]), dim=1)).T
            torch.add(given, received, out=logits[:-1])
            logits[:-1] += received.sum(0)
            q = logits.softmax(0)
        return q.view(n, self.height, self.width)


def label_unary(labels: Tensor, n: int, confidence: float) -> Tensor:
    """Energies of labels that are right with probability ``confidence``, all others alike.

    Args:
        labels: (H, W) int64, 0..n-1.
        n: number of labels that can occur: 1 + the classes of the image, for pseudo masks.
        confidence: of 0..1.

    Returns:
        (n, H, W) float32: -log(confidence) at a pixel's label, -log((1 - confidence) / (n - 1)) elsewhere.

    Raises:
        InputError: a label is outside 0..n-1, or the confidence is not above an even guess.
    """
    if labels.min() < 0 or labels.max() >= n:
        raise InputError(f"labels {int(labels.min())}..{int(labels.max())} given to a dense CRF of {n} labels")
    if n > 1 and not 1 / n < confidence < 1:
        raise InputError(f"confidence {confidence} of {n} labels: give a value between {1 / n:.2f} and 1")
    is_label = labels == torch.arange(n, device=labels.device)[:, None, None]
    others = -math.log((1 - confidence) / max(1, n - 1))
    return torch.where(is_label, -math.log(confidence), others)


def refine_labels(image: Tensor, labels: Tensor, n: int, settings: CRFSettings) -> Tensor:
    """The labels that a dense CRF makes of given ones.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) int64, 0..n-1.
        n: number of labels that can occur. With one label there is nothing to decide.
        settings: of the CRF.

    Returns:
        (H, W) int64.
    """
    if n == 1:
        return labels
    return DenseCRF(image, settings)(label_unary(labels, n, settings.confidence)).argmax(0)
