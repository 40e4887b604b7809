"""Chemicals down the tree together against one by one, the paper's way; level-1 bins against a loop over the rows.

Run: python -m benchmarks.fish_toxicity
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lightning_modules.fish_toxicity_qsar.bins import cut_at_gaps
from runs.building import build
from runs.composition import compose_config, to_plain

REPEATS = 5
ROWS, COLUMNS = 660, 600  # training rows and columns, as in the LC50 set
JUDGED = 300
TARGETS = 200_000  # of the bins
SETTINGS = ["experiment=fish_toxicity_qsar_demo", "paths.run_dir=unused", "model.reference=null"]


def seconds(job: Callable[[], Any]) -> float:
    """Median of some runs after one that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        job()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))


def bins_in_a_loop(targets: list[float], gap: float) -> list[int]:
    """Eq. 1 as it is printed."""
    bins = [0]
    for i in range(1, len(targets)):
        bins.append(bins[-1] + (round(targets[i] - targets[i - 1], 6) > gap))
    return bins


def main() -> None:
    """Prints a line for the walk and one for the bins."""
    generator = np.random.default_rng(0)
    features = torch.tensor(generator.uniform(size=(ROWS + JUDGED, COLUMNS)))
    targets = (4 + 3 * features[:, 0] + torch.tensor(generator.normal(0, 0.7, len(features)))).round(decimals=3)
    tree = build(to_plain(compose_config([*SETTINGS, "model.leaf_regressors=[ridge]"]))["model"])
    batch = {"features": features[:ROWS], "target": targets[:ROWS], "index": torch.arange(ROWS)}
    while not tree.is_fitted():
        tree.fit_closed_form(batch)
    judged = features[ROWS:]
    rows = list(judged.split(1))
    assert torch.equal(tree.walk(judged), torch.cat([tree.walk(row) for row in rows]))
    together, alone = seconds(lambda: tree.walk(judged)), seconds(lambda: [tree.walk(row) for row in rows])
    print(
        f"{JUDGED} chemicals down {len(tree.leaves())} leaves: together {together:.3f} s; one by one {alone:.3f} s; ",
        end="",
    )
    print(f"ratio {alone / together:.1f}")

    sorted_targets = torch.tensor(np.sort(generator.integers(0, 40 * TARGETS, TARGETS)) / 1000)
    listed = sorted_targets.tolist()
    assert cut_at_gaps(sorted_targets, 0.05, 6).tolist() == bins_in_a_loop(listed, 0.05)
    ours, loop = seconds(lambda: cut_at_gaps(sorted_targets, 0.05, 6)), seconds(lambda: bins_in_a_loop(listed, 0.05))
    print(f"bins of {TARGETS} targets: {ours:.4f} s; in a loop {loop:.4f} s; ratio {loop / ours:.1f}")


if __name__ == "__main__":
    main()
