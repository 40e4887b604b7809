"""Plain segmentation learnt from masks: the last stage of weakly supervised papers."""

from lightning_modules.segmenter.module import SegmenterModule
from lightning_modules.segmenter.network import Segmenter

__all__ = ["Segmenter", "SegmenterModule"]
