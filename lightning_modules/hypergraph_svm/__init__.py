"""IHLSVM: a semi-supervised SVM with graph and hypergraph Laplacian (Rastogi and Nirwal, 2024), and its baselines."""

from lightning_modules.hypergraph_svm.baselines import LibraryClassifier
from lightning_modules.hypergraph_svm.module import HypergraphSVMModule

__all__ = ["HypergraphSVMModule", "LibraryClassifier"]
