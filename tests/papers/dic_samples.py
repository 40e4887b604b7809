"""A small photograph with superpixels and human maps, and a small DIC module, for tests."""

from functools import partial
from typing import Any

import torch

from lightning_modules.dic import DICModule
from lightning_modules.dic.network import DeepClustering, FeatureTransform

HEIGHT, WIDTH = 15, 17


def sample(seed: int = 0, name: str = "one", **changes: Any) -> dict[str, Any]:
    """Two halves of different colour in noise, 20 superpixels, two human maps."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 60, (3, HEIGHT, WIDTH), generator=generator)
    image[0, :, : WIDTH // 2] += 150
    image[1, : HEIGHT // 3] += 120
    rows, columns = torch.arange(HEIGHT)[:, None] * 4 // HEIGHT, torch.arange(WIDTH)[None] * 5 // WIDTH
    halves = (torch.arange(WIDTH) >= WIDTH // 2).long().repeat(HEIGHT, 1)
    return {
        "image": image.to(torch.uint8),
        "guide": rows * 5 + columns,
        "guide_source": "squares",
        "human": [halves, halves + 2 * (torch.arange(HEIGHT)[:, None] < HEIGHT // 3).long()],
        "size": (HEIGHT, WIDTH),
        "name": name,
        "index": torch.tensor([seed]),
        **changes,
    }


def dic_module(**changes: Any) -> DICModule:
    """A tenth of the paper's width."""
    arguments: dict[str, Any] = {
        "fts": partial(FeatureTransform, upsample="bilinear", out_bn=True),
        "dcs": partial(DeepClustering, variant="official", gamma=3),
        "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        "width": 0.1,
        "T": 3,
        "min_labels": 4,
        "settings": [[5, 4]],
        "ois_select": "per_metric",
        "seed": 0,
    }
    return DICModule(**{**arguments, **changes})
