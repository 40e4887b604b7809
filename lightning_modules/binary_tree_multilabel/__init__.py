"""BT-MA (Rastogi and Chowdhury, ICPR 2024) and the multi-label methods it is compared with."""

from lightning_modules.binary_tree_multilabel.baselines import BinaryRelevanceModule, LabelPowersetModule, MLkNNModule
from lightning_modules.binary_tree_multilabel.module import BTMAModule

__all__ = ["BTMAModule", "BinaryRelevanceModule", "LabelPowersetModule", "MLkNNModule"]
