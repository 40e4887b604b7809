"""Results outlast the process: whole, of the right things, one for each image and setting."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat

from callbacks.per_image_results import KeptResult, PerImageResults


def keeper(folder: Path, checkpoint: Path | None = None) -> PerImageResults:
    results = PerImageResults(str(folder / "results"), str(folder / "scores.csv"), str(folder / "predictions"))
    trainer = SimpleNamespace(ckpt_path=checkpoint, progress_bar_callback=None, is_global_zero=True)
    results.setup(trainer, torch.nn.Linear(1, 1), "fit")
    return results


def result(seed: int = 0, largest: int = 300) -> KeptResult:
    labels = torch.randint(0, largest + 1, (6, 9), generator=torch.Generator().manual_seed(seed))
    labels[0, 0] = largest
    return KeptResult(labels, {"loss": torch.tensor([1.5, 0.1]), "labels": torch.tensor([9, 7])}, 3.25)


@pytest.mark.parametrize("largest", [300, 65535])
def test_what_was_kept_is_found_again_to_the_last_digit(tmp_path, largest):
    made = result(largest=largest)
    keeper(tmp_path).keep("2018", "C50_M32", "print", made, {"superpixels": 12})
    found = keeper(tmp_path).find("2018", "C50_M32", "print")
    assert torch.equal(found.labels, made.labels) and found.labels.dtype == torch.int64
    assert found.curves.keys() == made.curves.keys() and found.seconds == 3.25
    assert all(torch.equal(found.curves[name], made.curves[name]) for name in made.curves)
    written = json.loads((tmp_path / "results" / "2018" / "C50_M32.json").read_text())
    assert written["superpixels"] == 12
    assert np.array(Image.open(tmp_path / "results" / "2018" / "C50_M32.png")).max() == largest


def test_a_label_beyond_16_bits_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be 0 to 65535, found [0-9]+ to 65536"):
        keeper(tmp_path).keep("a", "C", "print", result(largest=65536), {})


def test_nothing_is_found_where_nothing_was_kept(tmp_path):
    results = keeper(tmp_path)
    results.keep("2018", "C50_M32", "print", result(), {})
    assert results.find("2018", "C20_M16", "print") is None
    assert results.find("2019", "C50_M32", "print") is None


def test_another_fingerprint_is_made_again_and_says_so(tmp_path, caplog):
    results = keeper(tmp_path)
    results.keep("2018", "C50_M32", "before", result(0), {})
    with caplog.at_level("INFO"):
        assert results.find("2018", "C50_M32", "now") is None
    assert "made again" in caplog.text and "2018" in caplog.text
    results.keep("2018", "C50_M32", "now", result(1), {})
    assert torch.equal(results.find("2018", "C50_M32", "now").labels, result(1).labels)


@pytest.mark.parametrize("file", ["C50_M32.json", "C50_M32.png"])
@pytest.mark.parametrize("damage", ["half", "empty", "gone", "other"])
def test_a_damaged_result_is_none(tmp_path, file, damage):
    results = keeper(tmp_path)
    results.keep("2018", "C50_M32", "print", result(), {})
    path = tmp_path / "results" / "2018" / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"half": content[: len(content) // 2], "empty": b"", "other": b"[1, 2]"}[damage])
    assert results.find("2018", "C50_M32", "print") is None


@pytest.mark.parametrize("died_after", [0, 1])
def test_a_kill_between_the_two_files_leaves_the_old_result_or_none_but_never_a_mixture(
    tmp_path, monkeypatch, died_after
):
    """The picture of a second writing is there and its JSON is not: the digest tells."""
    import callbacks.per_image_results as module

    results = keeper(tmp_path)
    results.keep("2018", "C50_M32", "print", result(0), {})
    written, write = [], module.write_atomically

    def dies(path, way):
        if len(written) == died_after:
            raise KeyboardInterrupt
        written.append(path)
        write(path, way)

    monkeypatch.setattr(module, "write_atomically", dies)
    with pytest.raises(KeyboardInterrupt):
        results.keep("2018", "C50_M32", "print", result(1), {})
    found = keeper(tmp_path).find("2018", "C50_M32", "print")
    assert (found is None) == (died_after == 1)
    if found is not None:
        assert torch.equal(found.labels, result(0).labels)


def test_a_full_disk_is_a_sentence_and_leaves_no_half_file(tmp_path, monkeypatch):
    import errno
    import os

    from runs.errors import InputError

    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full"):
        keeper(tmp_path).keep("2018", "C50_M32", "print", result(), {})
    assert [path for path in (tmp_path / "results").rglob("*") if path.is_file()] == []


def test_a_judged_checkpoint_lends_its_runs_results(tmp_path):
    keeper(tmp_path / "run").keep("2018", "C50_M32", "print", result(), {})
    judge = keeper(tmp_path / "eval", checkpoint=tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert judge.find("2018", "C50_M32", "print") is not None
    assert judge.find("2018", "C50_M32", "another") is None
    judge.keep("2018", "C50_M32", "another", result(1), {})
    assert judge.find("2018", "C50_M32", "another") is not None
    assert judge.find("2018", "C50_M32", "print") is not None, "the run's own is untouched"


def test_names_below_folders_stay_below_them(tmp_path):
    results = keeper(tmp_path)
    results.keep("trip/a.jpg", "C2_M2", "print", result(), {})
    assert (tmp_path / "results" / "trip" / "a.jpg" / "C2_M2.png").is_file()
    assert results.find("trip/a.jpg", "C2_M2", "print") is not None


@pytest.mark.parametrize("shares", [[[0, 1, 2, 3]], [[3, 2, 1, 0]], [[0, 2], [1, 3]]])
def test_a_prediction_writes_matlab_files_that_count_from_1_whoever_writes_them(tmp_path, shares):
    """Each process has a share. Their names do not depend on what was written before."""
    names = ["trip/a.jpg", "trip/a.png", "a.jpg", "b.v2.png"]
    trainer = SimpleNamespace(datamodule=SimpleNamespace(names_to_predict=lambda: names))
    values = {name: np.full((3, 4), place, np.uint16) for place, name in enumerate(names)}
    for share in shares:
        results = keeper(tmp_path)
        results.on_predict_start(trainer, None)
        for place in share:
            labels = Image.fromarray(values[names[place]])
            row = {"name": names[place], "C2_M2_labels": labels, "shown": Image.new("RGB", (4, 3))}
            results.on_predict_batch_end(trainer, None, [row], None, 0)
    folder = tmp_path / "predictions" / "C2_M2_labels"
    files = ["trip/a.jpg.mat", "trip/a.png.mat", "a.mat", "b.v2.mat"]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.mat")) == sorted(files)
    for name, file in zip(names, files, strict=True):
        assert np.array_equal(loadmat(folder / file)["seg_lab"], values[name].astype(int) + 1)


@pytest.mark.parametrize("change", [{"curves": [1]}, {"curves": {"loss": "x"}}, {"seconds": "x"}, {"seconds": None}])
def test_a_result_whose_facts_cannot_be_read_is_made_again(tmp_path, caplog, change):
    results = keeper(tmp_path)
    results.keep("2018", "C50_M32", "print", result(), {})
    file = tmp_path / "results" / "2018" / "C50_M32.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with caplog.at_level("INFO"):
        assert results.find("2018", "C50_M32", "print") is None
    assert "made again" in caplog.text


def test_a_result_that_the_system_does_not_give_is_made_again(tmp_path, caplog):
    (tmp_path / "results" / "2018" / "C50_M32.json").mkdir(parents=True)
    with caplog.at_level("INFO"):
        assert keeper(tmp_path).find("2018", "C50_M32", "print") is None
    assert "made again" in caplog.text


def test_a_result_that_is_not_finite_is_not_written(tmp_path):
    made = KeptResult(result().labels, {"loss": torch.tensor([1.5, float("nan")])}, 1.0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        keeper(tmp_path).keep("2018", "C50_M32", "print", made, {})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_scores_are_one_table_written_whole(tmp_path):
    class Module(torch.nn.Module):
        def use_results(self, results):
            self.results = results

        def score_table(self):
            return [{"image": "2018", "pri": 0.5}, {"image": "3063", "pri": None}]

    results, module = keeper(tmp_path), Module()
    trainer = SimpleNamespace(ckpt_path=None, is_global_zero=True, progress_bar_callback=None)
    results.setup(trainer, module, "test")
    assert module.results is results
    results.on_test_end(trainer, module)
    assert (tmp_path / "scores.csv").read_text().splitlines() == ["image,pri", "2018,0.5", "3063,"]


def test_inner_steps_are_shown_below_the_trainers_bar(tmp_path):
    import pytorch_lightning as pl
    from rich.console import Console
    from rich.progress import Progress

    bar = pl.callbacks.RichProgressBar()
    bar.progress = Progress(console=Console(file=io.StringIO(), force_terminal=True))
    bar.progress.soft_refresh = lambda: None
    results = keeper(tmp_path)
    results._trainer.progress_bar_callback = bar
    results.find("2018", "C50_M32", "print")
    results.inner_step(37, 100, "12 labels")
    (task,) = bar.progress.tasks
    assert (task.completed, task.total, task.visible) == (37, 100, True)
    assert task.description == "2018 C50_M32: 12 labels"
    results.keep("2018", "C50_M32", "print", result(), {})
    assert not task.visible
    results.find("3063", "C50_M32", "print")
    results.inner_step(1, 100, "40 labels")
    assert len(bar.progress.tasks) == 1 and task.visible and task.completed == 1
