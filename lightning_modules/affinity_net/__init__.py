"""AffinityNet: which near pixels belong together, learnt from class maps (Ahn and Kwak, arXiv 1803.10464)."""

from lightning_modules.affinity_net.module import AffinityNetModule
from lightning_modules.affinity_net.network import AffinityNetwork

__all__ = ["AffinityNetModule", "AffinityNetwork"]
