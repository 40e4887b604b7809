"""ISIM: iterative self-improved model for weakly supervised segmentation (arXiv 2211.12455)."""

from lightning_modules.isim.module import IsimModule
from lightning_modules.isim.network import CAMSegmenter, UNetDecoder

__all__ = ["CAMSegmenter", "IsimModule", "UNetDecoder"]
