"""Means over the batch of all processes, for losses that count something else than images."""

from torch import Tensor
from torch import distributed as dist


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """This process' part of a mean over what all processes count; DDP's average of the parts is the mean.

    Processes that divide by counts of their own give each of their pixels another weight than one
    process with all images would. Every process has to call this equally often.

    Args:
        total: sum over what this process counts, with its gradient.
        count: how many that are, an integer.

    Returns:
        ``total`` times the number of processes over the sum of all counts; 0 where nothing counts.
    """
    processes = 1
    if dist.is_available() and dist.is_initialized():
        processes, count = dist.get_world_size(), count.clone()
        dist.all_reduce(count)
    return total * processes / count.clamp(min=1)
