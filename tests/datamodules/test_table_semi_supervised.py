"""Hidden labels: which they are, that nobody can see them, and what can be asked wrongly; moons and IDX files."""

import gzip
import struct

import numpy as np
import pytest
import torch

from datamodules.fashion_mnist import FashionMNISTReader, read_idx
from datamodules.generated_moons import GeneratedMoons
from datamodules.table_files import CSVReader
from datamodules.table_semi_supervised import FewerTrainingRows, SemiSupervisedTableDataModule, kept_labels
from datamodules.table_splits import AllRows, Folds, Holdout
from runs.errors import InputError

CLASSES = np.repeat([0, 1, 2], [60, 30, 4])


def csv_file(path, label=None, seed=0):
    generator = np.random.default_rng(seed)
    label = CLASSES if label is None else label
    x = generator.normal(size=(len(label), 3)) + label[:, None]
    rows = [",".join(map(repr, row)) + f",c{c}" for row, c in zip(x.tolist(), label.tolist(), strict=True)]
    path.write_text("\n".join(["a,b,c,kind", *rows]) + "\n")
    return path


def module(path, reader=None, **changes) -> SemiSupervisedTableDataModule:
    settings = {
        "unlabelled": 0.5, "labelled_per_class": None, "max_train": None, "judged": "held_out", "reveal_judged": False,
        "reader": reader or CSVReader("kind", [], None, None, [], separator="comma", missing_label="refuse"),
        "root": str(path), "split": Folds(4, True), "fold": 0, "scale": "standard", "clip": False,
        "drop_constant": False, "invalid": "refuse", "batch_size": 16, "predict_root": None, "identifier": None,
        "seed": 1,
    }  # fmt: skip
    found = SemiSupervisedTableDataModule(**{**settings, **changes})
    found.trainer = type("Trainer", (), {"global_rank": 0, "world_size": 1})()
    return found


def training_batch(data):
    data.setup("fit")
    (batch,) = list(data.train_dataloader())
    return batch


class TestHiding:
    def test_of_each_class_the_share_is_hidden_and_one_label_stays(self):
        kept = kept_labels(CLASSES, 0.5, None, seed=0, fold=0)
        assert [int(kept[c == CLASSES].sum()) for c in (0, 1, 2)] == [30, 15, 2]
        kept = kept_labels(CLASSES, 0.99, None, seed=0, fold=0)
        assert [int(kept[c == CLASSES].sum()) for c in (0, 1, 2)] == [1, 1, 1]
        assert kept_labels(CLASSES, 0.0, None, seed=0, fold=0).all()

    def test_so_many_labels_of_each_class_or_all_it_has(self):
        kept = kept_labels(CLASSES, 0.0, 10, seed=0, fold=0)
        assert [int(kept[c == CLASSES].sum()) for c in (0, 1, 2)] == [10, 10, 4]

    def test_the_labels_of_a_larger_share_are_hidden_too_in_a_smaller_one(self):
        few, many = (kept_labels(CLASSES, share, None, 3, 0) for share in (0.3, 0.6))
        assert not (many & ~few).any() and many.sum() < few.sum()

    def test_seed_and_fold_draw_anew(self):
        draws = [kept_labels(CLASSES, 0.5, None, seed, fold) for seed, fold in ((0, 0), (0, 1), (1, 0), (0, 0))]
        assert np.array_equal(draws[0], draws[3])
        assert not np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])

    def test_of_label_sets_whole_rows_are_hidden(self):
        label = (np.random.default_rng(0).uniform(size=(40, 3)) < 0.3).astype(np.int64)
        assert kept_labels(label, 0.25, None, 0, 0).sum() == 30

    def test_a_hidden_label_is_minus_one_whatever_the_file_says(self, tmp_path):
        batch = training_batch(module(csv_file(tmp_path / "t.csv")))
        hidden = ~batch["labelled"]
        assert (batch["label"][hidden] == -1).all() and (batch["label"][~hidden] >= 0).all() and hidden.any()
        # Another file, whose hidden labels are others: the same batch.
        kept = batch["index"][batch["labelled"]].tolist()
        label = CLASSES.copy()
        train = batch["index"].tolist()
        for c in (0, 1, 2):  # the hidden rows of a class change places with one another: the folds stay
            rows = [row for row in train if row not in kept and CLASSES[row] == c]
            label[rows] = label[rows[::-1]]
        again = training_batch(module(csv_file(tmp_path / "u.csv", label)))
        for name in ("features", "label", "labelled"):
            assert torch.equal(batch[name], again[name])

    def test_the_table_keeps_its_labels(self, tmp_path):
        data = module(csv_file(tmp_path / "t.csv"))
        training_batch(data)
        assert (data.table.label >= 0).all()


class TestRows:
    def test_hidden_rows_are_scaled_with_the_others_and_judged_ones_are_not(self, tmp_path):
        data = module(csv_file(tmp_path / "t.csv"))
        features = training_batch(data)["features"]
        assert torch.allclose(features.mean(dim=0), torch.zeros(3, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(features.std(dim=0, unbiased=False), torch.ones(3, dtype=torch.float64))

    def test_no_judged_row_is_in_the_training_batch(self, tmp_path):
        data = module(csv_file(tmp_path / "t.csv"))
        trained = set(training_batch(data)["index"].tolist())
        judged = {row for batch in data.test_dataloader() for row in batch["index"].tolist()}
        assert trained | judged == set(range(94)) and not trained & judged

    def test_fewer_training_rows_have_the_shares_of_the_classes(self, tmp_path):
        data = module(csv_file(tmp_path / "t.csv"), max_train=24, unlabelled=0.0)
        label = training_batch(data)["label"]
        assert torch.bincount(label).tolist() == [15, 8, 1]
        assert len(data.rows()[1]) == len(module(csv_file(tmp_path / "t.csv")).split.split(data.table, 1, 0)[1])

    def test_a_sample_of_label_sets_is_drawn_at_random(self, tmp_path):
        data = module(csv_file(tmp_path / "t.csv"))
        data.setup("fit")
        train, _ = FewerTrainingRows(AllRows(), 10)(data.table, 0, 0)
        assert len(train) == 10 and (np.diff(train) > 0).all()

    def test_hidden_rows_can_be_judged_by_their_true_labels(self, tmp_path):
        data = module(csv_file(tmp_path / "t.csv"), judged="hidden")
        batch = training_batch(data)
        judged = [b for b in data.test_dataloader()]
        rows = torch.cat([b["index"] for b in judged])
        assert rows.tolist() == batch["index"][~batch["labelled"]].tolist()
        assert torch.cat([b["label"] for b in judged]).tolist() == CLASSES[rows].tolist()

    def test_the_judged_rows_are_revealed_only_where_asked(self, tmp_path):
        path = csv_file(tmp_path / "t.csv")
        assert "judged_features" not in training_batch(module(path))
        batch = training_batch(module(path, reveal_judged=True))
        assert len(batch["judged_features"]) == len(batch["judged_label"]) == 94 - len(batch["index"])
        assert (batch["judged_label"] >= 0).all()


class TestRowsWithoutAClass:
    """60 of 94 rows have no class in the file."""

    WITHOUT = np.sort(np.random.default_rng(5).choice(90, 60, replace=False))

    def half(self, path, **changes):
        """The same rows with 60 classes gone; the rest without these rows; both as datamodules of the same settings."""
        head, *lines = csv_file(path / "whole.csv").read_text().splitlines()
        gone = set(self.WITHOUT.tolist())
        half = [line.rpartition(",")[0] + "," if i in gone else line for i, line in enumerate(lines)]
        (path / "half.csv").write_text("\n".join([head, *half]) + "\n")
        (path / "rest.csv").write_text("\n".join([head, *(x for i, x in enumerate(lines) if i not in gone)]) + "\n")
        reader = CSVReader("kind", [], None, None, [], separator="comma", missing_label="keep")
        return [module(path / name, reader, split=Folds(2, True), **changes) for name in ("half.csv", "rest.csv")]

    def test_they_train_in_every_fold_unlabelled_and_are_never_judged(self, tmp_path):
        judged = []
        for fold in (0, 1):
            half, _ = self.half(tmp_path, fold=fold, unlabelled=0.0)
            batch = training_batch(half)
            without = torch.isin(batch["index"], torch.from_numpy(self.WITHOUT))
            assert int(without.sum()) == 60 and torch.equal(batch["labelled"], ~without)
            assert (batch["label"][without] == -1).all()
            assert torch.equal(batch["label"][~without], torch.from_numpy(CLASSES)[batch["index"][~without]])
            rows = [b["index"] for b in half.test_dataloader()]
            assert not set(torch.cat(rows).tolist()) & set(batch["index"].tolist())
            judged += torch.cat(rows).tolist()
        assert sorted(judged) == sorted(set(range(94)) - set(self.WITHOUT.tolist()))

    @pytest.mark.parametrize("changes", [{"unlabelled": 0.5}, {"unlabelled": 0.0, "labelled_per_class": 2}])
    def test_folds_and_hidden_labels_are_those_of_the_other_rows_alone(self, tmp_path, changes):
        half, rest = self.half(tmp_path, **changes)
        ours, theirs = training_batch(half), training_batch(rest)
        places = np.setdiff1d(np.arange(94), self.WITHOUT)
        kept = places[theirs["index"][theirs["labelled"]].numpy()]
        assert ours["index"][ours["labelled"]].tolist() == kept.tolist()
        wanted = [places[b["index"].numpy()].tolist() for b in rest.test_dataloader()]
        assert [b["index"].tolist() for b in half.test_dataloader()] == wanted

    def test_they_are_not_among_hidden_rows_that_are_judged(self, tmp_path):
        half, rest = self.half(tmp_path, judged="hidden")
        training_batch(half), training_batch(rest)
        places = np.setdiff1d(np.arange(94), self.WITHOUT)
        ours, theirs = (torch.cat([b["index"] for b in data.test_dataloader()]) for data in (half, rest))
        assert ours.tolist() == places[theirs.numpy()].tolist()
        half, _ = self.half(tmp_path, judged="hidden", unlabelled=0.0)
        half.setup("fit")
        with pytest.raises(InputError, match="no label is hidden"):
            half.test_dataloader()

    def test_fewer_training_rows_keep_their_share_of_them(self, tmp_path):
        half, _ = self.half(tmp_path, max_train=30, unlabelled=0.0)
        assert training_batch(half)["labelled"].tolist().count(False) == pytest.approx(30 * 60 / 77, abs=1.5)

    def test_of_other_data_only_rows_with_a_class_are_judged(self, tmp_path):
        half, _ = self.half(tmp_path)
        training_batch(half)
        other = module(tmp_path / "half.csv", half.reader, split=Folds(2, True))
        text = csv_file(tmp_path / "other.csv", seed=3).read_text().splitlines()
        (tmp_path / "other.csv").write_text("\n".join([*text[:3], text[3].rpartition(",")[0] + ",", *text[4:]]) + "\n")
        other.root = tmp_path / "other.csv"
        other.setup("test")
        other.load_state_dict(half.state_dict())
        rows = torch.cat([b["index"] for b in other.test_dataloader()]).tolist()
        assert rows == [0, 1, *range(3, 94)]
        (tmp_path / "none.csv").write_text(
            "\n".join([text[0], *(x.rpartition(",")[0] + "," for x in text[1:-3])]) + "\n"
        )
        lines = (tmp_path / "half.csv").read_text().splitlines()[1:]
        labelled_train = [lines[row] for row in half.rows()[0] if row not in self.WITHOUT]
        with (tmp_path / "none.csv").open("a") as file:  # its only rows with a class are known from training
            file.write("\n".join(labelled_train) + "\n")
        none = module(tmp_path / "none.csv", half.reader, split=Folds(2, True))
        none.setup("test")
        none.load_state_dict(half.state_dict())
        with pytest.raises(InputError, match="no row that the checkpoint was not trained on has a class"):
            none.rows()

    def test_label_sets(self, tmp_path):
        generator = np.random.default_rng(0)
        lines = [f"{a!r},{b!r},{int(a > 0)},{int(b > 0)}" for a, b in generator.normal(size=(30, 2)).tolist()]
        lines += [f"{a!r},{b!r},," for a, b in generator.normal(size=(10, 2)).tolist()]
        (tmp_path / "t.csv").write_text("\n".join(["a,b,p,q", *lines]) + "\n")
        reader = CSVReader(None, ["p", "q"], None, None, [], separator="comma", missing_label="keep")
        batch = training_batch(module(tmp_path / "t.csv", reader, split=Folds(3, False), unlabelled=0.0))
        assert batch["labelled"].tolist() == [True] * 20 + [False] * 10
        assert (batch["label"][20:] == -1).all() and (batch["label"][:20] >= 0).all()


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"unlabelled": 1.0}, r"data\.unlabelled=1\.0 must be 0 or more and below 1"),
            ({"unlabelled": -0.1}, r"data\.unlabelled=-0\.1 must be"),
            ({"labelled_per_class": 0}, r"data\.labelled_per_class=0 must be 1 or more"),
            ({"max_train": 0}, r"data\.max_train=0 must be 1 or more"),
            ({"reveal_judged": True, "judged": "hidden"}, r"data\.reveal_judged=true goes with"),
        ],
    )
    def test_settings(self, tmp_path, changes, sentence):
        with pytest.raises(InputError, match=sentence):
            module(tmp_path, **changes)

    def test_no_column_of_classes(self, tmp_path):
        reader = CSVReader(None, [], None, None, left_out=["kind"], separator="comma", missing_label="refuse")
        with pytest.raises(InputError, match=r"no column of classes is named: set data\.reader\.label"):
            module(csv_file(tmp_path / "t.csv"), reader).setup("fit")

    def test_one_class(self, tmp_path):
        with pytest.raises(InputError, match="all rows are of the class c0: give 2 or more"):
            module(csv_file(tmp_path / "t.csv", np.zeros(20, dtype=np.int64))).setup("fit")

    def test_a_class_without_a_training_row(self, tmp_path):
        label = np.append(np.tile([0, 1], 10), 2)
        data = module(csv_file(tmp_path / "t.csv", label), split=Holdout(0.9, False), seed=0)
        with pytest.raises(InputError, match=r"no training row of fold 0 is of the class c2, so none can be labelled"):
            training_batch(data)

    def test_unknown_values(self, tmp_path):
        path = csv_file(tmp_path / "t.csv")
        path.write_text(path.read_text().replace("\n", "\nnan,1,2,c0\n", 1))
        with pytest.raises(InputError, match="unknown value"):
            module(path).setup("fit")

    def test_no_hidden_row_to_judge(self, tmp_path):
        data = module(csv_file(tmp_path / "t.csv"), judged="hidden", unlabelled=0.0)
        data.setup("fit")
        with pytest.raises(InputError, match="no label is hidden"):
            data.test_dataloader()


class TestMoons:
    def test_they_are_a_csv_file_read_back_like_any_other(self, tmp_path):
        moons = GeneratedMoons(n=30, noise=0.1, seed=0)
        moons.write(tmp_path / "moons")
        table = moons.read(tmp_path / "moons")
        lines = (tmp_path / "moons" / "moons.csv").read_text().splitlines()
        assert lines[0] == "x,y,moon" and len(lines) == 31
        assert table.class_names == ["lower", "upper"] and np.bincount(table.label).tolist() == [15, 15]
        upper = table.features[table.label == 1, 1]
        assert upper.mean() > table.features[table.label == 0, 1].mean() + 0.5

    def test_a_folder_with_something_else_is_refused(self, tmp_path):
        (tmp_path / "mine.csv").write_text("x\n1\n")
        with pytest.raises(InputError, match="holds something else than generated points"):
            GeneratedMoons(n=30, noise=0.1, seed=0).write(tmp_path)

    @pytest.mark.parametrize(("n", "noise"), [(3, 0.1), (30, -1.0)])
    def test_settings_that_make_no_sense(self, n, noise):
        with pytest.raises(InputError, match=r"data\.reader\."):
            GeneratedMoons(n=n, noise=noise, seed=0)


def write_idx(path, values):
    content = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder, test_labels=4):
    generator = np.random.default_rng(0)
    images = {"train": generator.integers(0, 256, (6, 5, 5)), "t10k": generator.integers(0, 256, (4, 5, 5))}
    for (part, pixels), ending in zip(images.items(), (".gz", ""), strict=True):
        write_idx(folder / f"{part}-images-idx3-ubyte{ending}", pixels.astype(np.uint8))
        count = len(pixels) if part == "train" else test_labels
        write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", (np.arange(count) % 2).astype(np.uint8))
    return images


class TestFashionMNIST:
    def test_packed_and_unpacked_files_become_pixels_of_0_to_1_in_their_official_parts(self, tmp_path):
        images = write_fashion(tmp_path)
        table = FashionMNISTReader(["shirt", "bag"]).read(tmp_path)
        assert np.allclose(table.features[:6], images["train"].reshape(6, 25) / 255)
        assert np.allclose(table.features[6:], images["t10k"].reshape(4, 25) / 255)
        assert table.parts.tolist() == ["train"] * 6 + ["test"] * 4 and table.label.tolist() == [0, 1] * 5

    def test_what_is_missing_or_does_not_fit_is_named(self, tmp_path):
        with pytest.raises(InputError, match=r"holds neither train-images-idx3-ubyte\.gz nor"):
            FashionMNISTReader(["shirt", "bag"]).read(tmp_path)
        write_fashion(tmp_path, test_labels=3)
        with pytest.raises(InputError, match="4 t10k images and 3 labels do not belong together"):
            FashionMNISTReader(["shirt", "bag"]).read(tmp_path)
        with pytest.raises(InputError, match=r"a train label is 1, data\.reader\.class_names has 1"):
            FashionMNISTReader(["shirt"]).read(tmp_path)

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (b"no gzip", "cannot be unpacked"),
            (gzip.compress(b"nothing of the kind", mtime=0), "no IDX file of bytes with 1 axes"),
            (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1]), mtime=0), "holds 1 values instead of 9: it was cut off"),
        ],
    )
    def test_a_broken_file_is_named(self, tmp_path, content, sentence):
        (tmp_path / "x.gz").write_bytes(content)
        with pytest.raises(InputError, match=sentence):
            read_idx(tmp_path / "x.gz", 1)
