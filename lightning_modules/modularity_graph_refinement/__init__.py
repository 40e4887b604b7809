"""Modularity-guided graph refinement (Zhuang, Wang, Hao and Wang, ICPR 2024)."""

from lightning_modules.modularity_graph_refinement.module import ModularityRefinementModule

__all__ = ["ModularityRefinementModule"]
