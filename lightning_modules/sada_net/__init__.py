"""SAda-Net (Hirner, Fraundorfer)."""

from lightning_modules.sada_net.matcher import StereoMatcher
from lightning_modules.sada_net.module import SadaNetModule
from lightning_modules.sada_net.network import LocalWindows, SiameseBranch, SimilarityNet

__all__ = ["LocalWindows", "SadaNetModule", "SiameseBranch", "SimilarityNet", "StereoMatcher"]
