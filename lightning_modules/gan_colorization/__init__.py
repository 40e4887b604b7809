"""GAN-Based Image Colorization for Self-Supervised Visual Feature Learning (Treneska et al., Sensors 2022)."""

from lightning_modules.gan_colorization.classifier import ClassifierModule
from lightning_modules.gan_colorization.module import GanColorizationModule
from lightning_modules.gan_colorization.network import Classifier, Generator, PatchDiscriminator, Segmenter
from lightning_modules.gan_colorization.segmenter import SegmenterModule

__all__ = [
    "Classifier",
    "ClassifierModule",
    "GanColorizationModule",
    "Generator",
    "PatchDiscriminator",
    "Segmenter",
    "SegmenterModule",
]
