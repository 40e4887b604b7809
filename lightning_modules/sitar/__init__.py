"""SITAR: semi-supervised image transformer for action recognition (Iqbal et al., ICPR 2024)."""

from lightning_modules.sitar.module import SitarModule
from lightning_modules.sitar.network import SuperImageSwin

__all__ = ["SitarModule", "SuperImageSwin"]
