"""SuperSimpleNet (Rolih, Fučka and Skočaj, ICPR 2024), and SimpleNet, which it grew from."""

from lightning_modules.supersimplenet.anomalies import AnomalyGenerator
from lightning_modules.supersimplenet.backbone import FrozenFeatureExtractor
from lightning_modules.supersimplenet.losses import DefectLoss
from lightning_modules.supersimplenet.module import SuperSimpleNetModule
from lightning_modules.supersimplenet.network import SuperSimpleNet

__all__ = ["AnomalyGenerator", "DefectLoss", "FrozenFeatureExtractor", "SuperSimpleNet", "SuperSimpleNetModule"]
