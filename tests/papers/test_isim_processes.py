"""The losses of ISIM's three stages are means over the global batch, however it is shared by processes."""

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn

from tests.papers import test_affinity_net, test_isim_module, test_segmenter

MODULES = {"isim": test_isim_module, "affinity": test_affinity_net, "final": test_segmenter}


def batch(part: slice) -> dict[str, torch.Tensor]:
    """Two images; of the first only a corner counts, of the second all."""
    mask = torch.zeros(2, 32, 32, dtype=torch.int64)
    mask[0], mask[0, :9, :9], mask[0, 2:6, 2:6] = 255, 0, 2
    mask[1, 5:20, 5:20] = 1
    whole = {
        "image": test_isim_module.pixels(2, 3, 32, 32),
        "label": torch.tensor([[0.0, 1, 0], [1, 0, 0]]),
        "pseudo_mask": mask,
    }
    return {name: value[part] for name, value in whole.items()}


def gradients(stage: str, part: slice) -> tuple[nn.Module, float]:
    """The stage's own training step; eval mode, because BatchNorm would see other batches."""
    module = MODULES[stage].module().eval()
    module.log = lambda *_, **__: None
    loss = module.training_step(batch(part), 0)
    loss.backward()
    return module, float(loss.detach())


def share_of(rank: int, folder: str) -> dict[str, tuple[float, dict[str, torch.Tensor]]]:
    """One process' work: of each stage the loss and the gradients, averaged as DDP does it."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for stage in MODULES:
        module, loss = gradients(stage, slice(rank, rank + 1))
        mean = torch.tensor(loss)
        for value in (mean, *(p.grad for p in module.parameters())):
            dist.all_reduce(value)
            value /= 2
        found[stage] = float(mean), {name: p.grad for name, p in module.named_parameters()}
    dist.destroy_process_group()
    return found


def test_two_processes_with_unequal_counts_have_the_gradient_of_one(tmp_path):
    other = multiprocessing.get_context("spawn").Process(target=share_of, args=(1, str(tmp_path)))
    other.start()
    found = share_of(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    for stage, (mean, averaged) in found.items():
        module, loss = gradients(stage, slice(0, 2))
        assert mean == pytest.approx(loss, rel=1e-5)
        for name, p in module.named_parameters():
            torch.testing.assert_close(averaged[name], p.grad, rtol=1e-3, atol=1e-6)
        alone = [gradients(stage, slice(rank, rank + 1))[1] for rank in (0, 1)]
        assert sum(alone) / 2 != pytest.approx(loss, rel=1e-2), "counts of their own would give something else"
