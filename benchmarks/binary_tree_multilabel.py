"""BT-MA and its baselines, fit and prediction, against scikit-learn's one-against-rest LinearSVC on the same rows.

CPU seconds of one thread, as the paper's first column is CPU time and other work on the machine hardly shows in them.

Run: python -m benchmarks.binary_tree_multilabel      (REPRISE_DATA=<folder with mulan_multilabel/> takes real sets)
"""

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from datamodules.generated_label_sets import GeneratedLabelSets
from datamodules.mulan import MulanReader
from datamodules.table import as_tensor
from datamodules.table_files import Table
from lightning_modules.binary_tree_multilabel import BinaryRelevanceModule, BTMAModule, MLkNNModule
from lightning_modules.binary_tree_multilabel.multilabel import MultilabelModule
from lightning_modules.binary_tree_multilabel.svm import SVMSettings

REPEATS = 5
LINEAR = SVMSettings(kernel="linear", C=1.0, class_weight=None)
METHODS: dict[str, Callable[[], MultilabelModule]] = {
    "BT-MA": lambda: BTMAModule(
        LINEAR, depth="half", residual_leaf="prototypes", start_cardinality="auto", tree=True, score="hard",
        ties="high_index",
    ),
    "BR, native SVMs": lambda: BinaryRelevanceModule(LINEAR, score="hard", ties="high_index"),
    "ML-kNN": lambda: MLkNNModule(k=10, smoothing=1.0, score="hard", ties="high_index"),
}  # fmt: skip


def tables() -> dict[str, Table]:
    """A generated set, and where they are GnegativeGO, Langlog and Birds, which is dense."""
    generated = GeneratedLabelSets(
        rows=1400, words=1700, labels=12, sets=20, most_labels=2, own_words=6, present=0.8, background=0.005, seed=0
    )
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        generated.write(Path(folder) / "set")
        found["generated"] = generated.read(Path(folder) / "set")
    if os.environ.get("REPRISE_DATA"):
        root = Path(os.environ["REPRISE_DATA"]) / "mulan_multilabel"
        for name in ("GnegativeGO", "Langlog", "Birds"):
            found[name] = MulanReader(name, nominal="one_hot", dense=False, subset_rows=None, subset_seed=0).read(root)
    return found


def seconds(job: Callable[[], Any]) -> float:
    """Median of five runs after one that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        started = time.process_time()
        job()
        times.append(time.process_time() - started)
    return float(np.median(times[1:]))


def fit_and_answer(make: Callable[[], MultilabelModule], rows: dict[str, torch.Tensor], new: torch.Tensor) -> None:
    """All steps of a method, then its answers."""
    model = make()
    while not model.is_fitted():
        model.fit_closed_form(rows)
    model.answer(new)


def main() -> None:
    """Prints a line for each set and method."""
    warnings.filterwarnings("ignore", message=".*Sparse.*")
    torch.set_num_threads(1)
    for name, table in tables().items():
        test = np.arange(len(table)) % 5 == 0
        train, labels, judged = table.features[~test], table.label[~test], table.features[test]
        if isinstance(train, np.ndarray):  # as `data.scale=standard` does
            scaler = StandardScaler().fit(train)
            train, judged = scaler.transform(train), scaler.transform(judged)
        rows = {
            "features": as_tensor(train),
            "label": torch.from_numpy(labels),
            "index": torch.from_numpy(np.flatnonzero(~test)),
        }
        new = as_tensor(judged)
        library = OneVsRestClassifier(LinearSVC(C=1.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of labels that no training row has
            theirs = seconds(
                lambda library=library, train=train, labels=labels, judged=judged: library.fit(train, labels).predict(
                    judged
                )
            )
        print(f"{name}, {train.shape[0]} + {judged.shape[0]} rows: OneVsRestClassifier(LinearSVC) {theirs:.3f} s")
        for method, make in METHODS.items():
            ours = seconds(lambda make=make, rows=rows, new=new: fit_and_answer(make, rows, new))
            print(f"  {method:16s} {ours:.3f} s; ratio {theirs / ours:.2f}", flush=True)


if __name__ == "__main__":
    main()
