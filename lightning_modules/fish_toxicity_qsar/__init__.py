"""QSAR of fish toxicity by a tree over target ranges (Kavitha, Guru)."""

from lightning_modules.fish_toxicity_qsar.module import BinTreeModule
from lightning_modules.fish_toxicity_qsar.regressor import RegressorModule

__all__ = ["BinTreeModule", "RegressorModule"]
