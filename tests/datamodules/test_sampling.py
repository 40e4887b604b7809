"""Training order: one stream of permutations, however it is shared out, cut up or resumed."""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import Dataset

from components.seeding import derived_seed
from datamodules.sampling import (
    Draw,
    EpochPosition,
    EpochSampler,
    StridedSampler,
    as_draw,
    shared_batches,
    trainer_position,
    training_loader,
)
from runs.errors import InputError


def draws(size: int, batch: int, batches: int, at: tuple[int, ...], seed: int = 3) -> list[Draw]:
    return list(EpochSampler(size, batch, batches, seed, lambda: EpochPosition(*at)))


def test_each_permutation_holds_every_sample_once() -> None:
    stream = [d for epoch in range(6) for d in draws(10, 4, 5, (epoch, 0, 0, 1))]
    assert [d.number for d in stream] == list(range(120))
    for k in range(12):
        assert sorted(d.index for d in stream[10 * k : 10 * k + 10]) == list(range(10))
    assert [d.index for d in stream[:10]] != [d.index for d in stream[10:20]]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_hold_the_batches_of_one_process(world_size: int) -> None:
    alone = draws(11, 6, 4, (2, 0, 0, 1))
    shares = [draws(11, 6 // world_size, 4, (2, 0, rank, world_size)) for rank in range(world_size)]
    for batch in range(4):
        together = [share[6 // world_size * batch + place] for place in range(6 // world_size) for share in shares]
        assert together == alone[6 * batch : 6 * batch + 6]


def test_a_resumed_epoch_yields_exactly_the_remaining_draws_and_keeps_its_length() -> None:
    whole = draws(11, 3, 5, (7, 0, 1, 2))
    for done in range(6):
        assert draws(11, 3, 5, (7, done, 1, 2)) == whole[3 * done :]
    assert len(EpochSampler(11, 3, 5, 0, lambda: EpochPosition(7, 2, 0, 1))) == 15


def test_the_shorter_of_two_sets_runs_on_through_further_permutations() -> None:
    short = [d.index for epoch in range(3) for d in draws(3, 2, 6, (epoch, 0, 0, 1))]
    assert len(short) == 36
    assert set(Counter(short).values()) == {12}


def test_seeds_give_other_orders_and_streams_other_seeds() -> None:
    first, second = (draws(50, 10, 5, (0, 0, 0, 1), seed=seed) for seed in (1, 2))
    assert [d.index for d in first] != [d.index for d in second]
    assert derived_seed(1, 0) != derived_seed(1, 1)


def test_strided_sampler_takes_every_sample_once_over_all_ranks() -> None:
    shares = [list(StridedSampler(14, rank, 4)) for rank in range(4)]
    assert sorted(place for share in shares for place in share) == list(range(14))
    assert [len(StridedSampler(14, rank, 4)) for rank in range(4)] == [len(s) for s in shares]


def test_plain_ints_are_accepted_as_draws() -> None:
    assert as_draw(5) == Draw(5, 0)
    assert as_draw(Draw(5, 9)) == Draw(5, 9)


def test_a_batch_that_cannot_be_shared_evenly_is_refused_with_the_key() -> None:
    assert shared_batches(8, 2, "data.batch_size") == 4
    with pytest.raises(InputError, match=r"data\.batch_size=7 .* multiple of 2"):
        shared_batches(7, 2, "data.batch_size")
    for empty in (0, -2):
        with pytest.raises(InputError, match=rf"^data\.batch_size={empty} must be 1 or more$"):
            shared_batches(empty, 2, "data.batch_size")


def test_nothing_to_sample_is_refused() -> None:
    with pytest.raises(InputError, match="found 0 samples"):
        EpochSampler(0, 2, 1, 0, lambda: EpochPosition(0, 0, 0, 1))


class Numbers(Dataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, item: Draw | int) -> torch.Tensor:
        draw = as_draw(item)
        return torch.tensor([draw.index, draw.number])


class TwoSets(pl.LightningDataModule):
    """23 labelled and 10 unlabelled numbers, 6 batches an epoch."""

    def __init__(self, num_workers: int, labeled_size: int = 23) -> None:
        super().__init__()
        self.num_workers = num_workers
        self.labeled_size = labeled_size

    def train_dataloader(self) -> CombinedLoader:
        def loader(size: int, seed: int) -> Any:
            sampler = EpochSampler(size, 4, 6, seed, lambda: trainer_position(self.trainer))
            return training_loader(Numbers(size), sampler, num_workers=self.num_workers, pin_memory=False)

        return CombinedLoader({"labeled": loader(self.labeled_size, 1), "unlabeled": loader(10, 2)}, "min_size")

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(Numbers(2))


class Recorder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int, list[Any]]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        both = [batch["labeled"].tolist(), batch["unlabeled"].tolist()]
        self.seen.append((self.current_epoch, batch_idx, both))
        return self.weight.sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveThere(Callback):
    """Writes a checkpoint at one place of one hook, then breaks the run off."""

    def __init__(self, path: Path, hook: str, epoch: int, batch: int) -> None:
        self.path, self.hook, self.place = path, hook, (epoch, batch)

    def _act(self, hook: str, trainer: pl.Trainer, batch: int) -> None:
        if hook == self.hook and (trainer.current_epoch, batch) == self.place:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._act("on_train_batch_end", trainer, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._act("on_validation_end", trainer, trainer.fit_loop.batch_idx)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._act("on_train_epoch_end", trainer, trainer.fit_loop.batch_idx)


def fit(num_workers: int = 0, ckpt_path: Path | None = None, **options: Any) -> Recorder:
    labeled_size = options.pop("labeled_size", 23)
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **options,
    )
    datamodule = TwoSets(num_workers, labeled_size)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        trainer.fit(recorder, datamodule=datamodule, ckpt_path=ckpt_path)
    return recorder


@pytest.fixture(scope="module")
def unbroken() -> list[tuple[int, int, list[Any]]]:
    return fit().seen


def test_lightning_sees_both_sets_at_equal_length(
    unbroken: list[tuple[int, int, list[Any]]],
) -> None:
    assert [(epoch, batch) for epoch, batch, _ in unbroken] == [
        (epoch, batch) for epoch in range(4) for batch in range(6)
    ]
    numbers = [number for _, _, (labeled, _) in unbroken for _, number in labeled]
    assert numbers == list(range(4 * 6 * 4))


@pytest.mark.filterwarnings("error:You're resuming from a checkpoint that ended")
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("hook", "epoch", "batch"),
    [
        ("on_train_batch_end", 0, 0),
        ("on_train_batch_end", 1, 2),
        ("on_train_batch_end", 1, 5),
        ("on_validation_end", 1, 5),
        ("on_train_epoch_end", 2, 5),
    ],
)
def test_a_run_broken_off_anywhere_goes_on_with_the_next_batch(
    unbroken: list[tuple[int, int, list[Any]]],
    tmp_path: Path,
    num_workers: int,
    hook: str,
    epoch: int,
    batch: int,
) -> None:
    path = tmp_path / "broken.ckpt"
    before = fit(num_workers, callbacks=[SaveThere(path, hook, epoch, batch)]).seen
    after = fit(num_workers, ckpt_path=path).seen
    assert before + after == unbroken


def test_a_limited_epoch_resumes_at_the_next_epoch(tmp_path: Path) -> None:
    path = tmp_path / "broken.ckpt"
    whole = fit(limit_train_batches=3).seen
    stop = SaveThere(path, "on_train_batch_end", 1, 2)
    before = fit(1, limit_train_batches=3, callbacks=[stop]).seen
    assert before + fit(1, limit_train_batches=3, ckpt_path=path).seen == whole


def test_resuming_on_another_amount_of_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.ckpt"
    fit(callbacks=[SaveThere(path, "on_train_batch_end", 1, 2)])
    with pytest.raises(InputError, match="trained on 23 samples but the data now hold 22"):
        fit(ckpt_path=path, labeled_size=22)


def test_overfit_batches_repeats_the_same_batch() -> None:
    seen = fit(overfit_batches=1).seen
    assert len({str(both) for _, _, both in seen}) == 1
    assert [index for index, _ in seen[0][2][0]] == [0, 1, 2, 3]
