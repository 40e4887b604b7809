"""Generated videos and the real sample, for the tests of the video readers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.ucf101 import UCF101Reader
from datamodules.video_ssl import VideoSSLDataModule
from tests.datamodules.tiny_videos import write_ucf


@pytest.fixture
def ucf_root(tmp_path: Path) -> Path:
    """Two classes with official ids 2 and 4; 3 training clips and 1 test clip each."""
    return write_ucf(tmp_path / "ucf", ["Biking", "HandstandPushups"])


@pytest.fixture
def build() -> Callable[..., VideoSSLDataModule]:
    """Builds a small datamodule; keywords replace its settings."""

    def build_datamodule(root: Path | None, **changes: Any) -> VideoSSLDataModule:
        settings: dict[str, Any] = {
            "reader": UCF101Reader("ucfTrainTestlist"),
            "root": None if root is None else str(root),
            "lists": "official",
            "split": 1,
            "labeled_per_class": 1,
            "labeled_fraction": None,
            "label_seed": 0,
            "unlabeled": True,
            "unlabeled_includes_labeled": False,
            "mu": 2,
            "batch_size": 2,
            "eval_batch_size": 4,
            "num_classes": 2,
            "frames_fast": 8,
            "frames_slow": 4,
            "cell_fast": 16,
            "cell_slow": 24,
            "slow_sampling": "subsample",
            "single_frame": False,
            "crop_scales": [1.0, 0.875, 0.75, 0.66],
            "crop_max_distort": 1,
            "flip": 0.5,
            "num_eval_clips": 1,
            "cache": "none",
            "on_missing": "error",
            "predict_root": None,
            "num_workers": 0,
            "pin_memory": False,
            "seed": 1,
        }
        return VideoSSLDataModule(**(settings | changes))

    return build_datamodule


@pytest.fixture(scope="session")
def real_root() -> Path:
    """The real 36-clip sample of UCF101."""
    folder = os.environ.get("REPRISE_DATA")
    if not folder:
        pytest.skip("REPRISE_DATA is not set: no real clips to read")
    root = Path(folder) / "ucf101"
    if not root.is_dir():
        pytest.skip(f"{root} is missing: no real clips to read")
    return root
