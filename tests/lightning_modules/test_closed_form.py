"""Methods without gradients on tables: fit at once or step by step, judged and used from their checkpoint alone."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from rich.progress import Progress
from torch import Tensor

from datamodules.table import TableDataModule
from datamodules.table_files import CSVReader
from datamodules.table_splits import Folds
from lightning_modules.closed_form import ClosedFormModule
from runs.errors import InputError


class LeastSquares(ClosedFormModule):
    """y = X w + b by the normal equations, as many solutions in a row as there are steps."""

    weights: Tensor

    def __init__(self, steps: int = 1) -> None:
        super().__init__()
        self.steps = steps
        self.register_variable_buffer("weights", torch.float64)
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        self.squares: list[Tensor] = []

    def fit_closed_form(self, batch):
        A = torch.nn.functional.pad(batch["features"], (0, 1), value=1.0)
        self.weights = torch.linalg.lstsq(A, batch["target"][:, None]).solution[:, 0]
        self.done += 1
        return {"residual": (A @ self.weights - batch["target"]).square().mean()}

    def is_fitted(self) -> bool:
        return int(self.done) == self.steps

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weights[:-1] + self.weights[-1]

    def test_step(self, batch, batch_idx):
        squares = (self(batch["features"]) - batch["target"]).square()
        self.log("test/mse", squares.mean(), on_step=False, on_epoch=True, batch_size=len(squares))

    def predict_step(self, batch, batch_idx):
        names = batch.get("name", batch["index"].tolist())
        return [{"name": n, "y": v} for n, v in zip(names, self(batch["features"]).tolist(), strict=True)]


def write_table(path: Path, rows: int = 30, shift: float = 0.0) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(rows, 3)) + shift
    y = x @ [1.0, -2.0, 0.5] + 3.0
    rows = np.column_stack([x, y]).tolist()
    lines = [f"row{i},{','.join(map(repr, row))}" for i, row in enumerate(rows)]
    path.write_text("\n".join(["id,a,b,c,y", *lines]) + "\n")
    return y


def table(path: Path, **changes) -> TableDataModule:
    settings = {
        "reader": CSVReader(None, [], "y", "id", left_out=[], separator="comma", missing_label="refuse"),
        "root": str(path), "split": Folds(5, False), "fold": 0, "scale": "standard", "clip": False,
        "drop_constant": False,
        "invalid": "refuse", "batch_size": 4, "predict_root": None, "identifier": "id", "seed": 1,
    }  # fmt: skip
    return TableDataModule(**{**settings, **changes})


def trainer(**settings) -> pl.Trainer:
    return pl.Trainer(
        **{
            "accelerator": "cpu", "max_epochs": 50, "logger": False, "enable_checkpointing": False,
            "enable_model_summary": False, "enable_progress_bar": False, **settings,
        }
    )  # fmt: skip


@pytest.fixture
def fitted(tmp_path):
    write_table(tmp_path / "table.csv")
    run = trainer()
    module, data = LeastSquares(), table(tmp_path / "table.csv")
    run.fit(module, datamodule=data)
    run.save_checkpoint(tmp_path / "last.ckpt")
    return module, data, run


def test_one_step_solves_and_ends_the_training(fitted):
    module, data, run = fitted
    assert run.current_epoch == 1 and run.global_step == 1
    assert run.test(module, datamodule=data, verbose=False)[0]["test/mse"] < 1e-20


@pytest.mark.usefixtures("fitted")
def test_a_checkpoint_alone_predicts_for_a_table_with_other_columns_in_another_order(tmp_path):
    (tmp_path / "new.csv").write_text("c,remark,a,b,id\n0,x,0,0,zero\n2,y,1,1,other\n")
    data = table(tmp_path / "gone.csv", predict_root=str(tmp_path / "new.csv"))
    rows = trainer().predict(LeastSquares(), datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert [row["name"] for row in rows[0]] == ["zero", "other"]
    assert [row["y"] for row in rows[0]] == pytest.approx([3.0, 3.0])


def test_a_checkpoint_judges_the_fold_it_has_not_seen_and_all_of_other_rows(fitted, tmp_path):
    seen = []

    class Counting(LeastSquares):
        def test_step(self, batch, batch_idx):
            seen.extend(batch["index"].tolist())
            super().test_step(batch, batch_idx)

    write_table(tmp_path / "other.csv", rows=11, shift=1.0)
    for name in ("table.csv", "other.csv"):
        seen.clear()
        data = table(tmp_path / name)
        scores = trainer().test(
            Counting(), datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True, verbose=False
        )
        assert scores[0]["test/mse"] < 1e-20  # by the scaling of the checkpoint, not of the new rows
        assert sorted(seen) == (data.split(data.table, 1, 0)[1].tolist() if name == "table.csv" else list(range(11)))


@pytest.mark.usefixtures("fitted")
@pytest.mark.parametrize("change", [{"fold": 1}, {"seed": 2}, {"split": Folds(3, False)}])
def test_another_split_of_the_same_rows_is_refused_as_it_would_judge_by_training_rows(tmp_path, change):
    data = table(tmp_path / "table.csv", **change)
    with pytest.raises(InputError, match="trained on rows that they would judge it by"):
        trainer().test(LeastSquares(), datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def test_rows_that_were_trained_on_do_not_judge_in_a_larger_table_either(fitted, tmp_path):
    _, trained, _ = fitted
    write_table(tmp_path / "other.csv", rows=11, shift=1.0)
    rows = (tmp_path / "other.csv").read_text().splitlines()[1:]
    (tmp_path / "both.csv").write_text((tmp_path / "table.csv").read_text() + "\n".join(rows) + "\n")
    data = table(tmp_path / "both.csv")
    with pytest.warns(UserWarning, match="24 of 41 rows were trained on and are left out"):
        trainer().test(
            LeastSquares(), datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True, verbose=False
        )
    assert data.rows()[1].tolist() == sorted({*range(41)} - {*trained.rows()[0].tolist()})


def test_steps_go_on_where_a_checkpoint_was_written(tmp_path):
    write_table(tmp_path / "table.csv")
    first = trainer(max_epochs=2)
    first.fit(LeastSquares(steps=5), datamodule=table(tmp_path / "table.csv"))
    first.save_checkpoint(tmp_path / "last.ckpt")
    module, run = LeastSquares(steps=5), trainer()
    run.fit(module, datamodule=table(tmp_path / "table.csv"), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert int(module.done) == 5 and run.current_epoch == 5


@pytest.mark.parametrize("shown", [True, False])
def test_a_long_step_shows_how_far_it_is_where_the_trainer_shows_anything(tmp_path, monkeypatch, shown):
    bars, track = [], Progress.track

    def tracked(self, items, total, description):
        bars.append((total, description))
        return track(self, items, total=total, description=description)

    class Slow(LeastSquares):
        def fit_closed_form(self, batch):
            assert list(self.progress(range(7), 7, "rows")) == list(range(7))
            return super().fit_closed_form(batch)

    monkeypatch.setattr(Progress, "track", tracked)
    write_table(tmp_path / "table.csv")
    trainer(enable_progress_bar=shown).fit(Slow(), datamodule=table(tmp_path / "table.csv"))
    assert bars == ([(7, "rows")] if shown else [])


def test_a_long_step_needs_no_trainer():
    assert list(LeastSquares().progress(iter("ab"), 2, "rows")) == ["a", "b"]


def test_training_goes_on_with_its_own_rows_only(fitted, tmp_path):
    write_table(tmp_path / "other.csv", shift=1.0)
    with pytest.raises(InputError, match="other rows than the checkpoint was trained on"):
        trainer().fit(
            LeastSquares(steps=2), datamodule=table(tmp_path / "other.csv"), ckpt_path=tmp_path / "last.ckpt",
            weights_only=True,
        )  # fmt: skip


def test_other_columns_than_the_checkpoints_are_named(fitted, tmp_path):
    text = (tmp_path / "table.csv").read_text().replace("id,a,b,c,y", "id,a,b,d,y")
    (tmp_path / "other.csv").write_text(text)
    with pytest.raises(InputError, match=r"other columns than the checkpoint's 3 \(d\)"):
        trainer().test(
            LeastSquares(),
            datamodule=table(tmp_path / "other.csv"),
            ckpt_path=tmp_path / "last.ckpt",
            weights_only=True,
        )
