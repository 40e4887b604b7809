"""Tables: reading, unknown values, splits, scaling by the training rows alone."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from datamodules.csv_rows import read_csv_rows
from datamodules.table import TableDataModule, TableRows, fit_scaling
from datamodules.table_files import CSVReader, Table, read_features
from datamodules.table_splits import AllRows, Folds, Holdout, OfficialParts
from runs.errors import InputError

PLAIN = {"label": None, "labels": [], "target": None, "identifier": None, "left_out": []}


def read(path, text, **reader):
    path.write_text(text)
    return CSVReader(**{**PLAIN, **reader}).read(path)


def module(reader, root, **changes) -> TableDataModule:
    settings = {
        "reader": reader, "root": str(root), "split": AllRows(), "fold": 0, "scale": "none", "clip": False,
        "drop_constant": False,
        "invalid": "refuse", "batch_size": 4, "predict_root": None, "identifier": None, "seed": 1,
    }  # fmt: skip
    return TableDataModule(**{**settings, **changes})


class TestReading:
    def test_columns_are_told_apart_by_their_names(self, tmp_path):
        table = read(
            tmp_path / "t.csv", "\ufeffid, x ,kind,note,y\np,1,b,n,2.5\n\nq,2,a,m,3\n",
            target="y", identifier="id", left_out=["kind", "note"],
        )  # fmt: skip
        assert table.columns == ["x"] and table.features.tolist() == [[1.0], [2.0]]
        assert table.target.tolist() == [2.5, 3.0] and table.identifiers == ["p", "q"]

    def test_classes_are_numbered_by_name_or_by_value(self, tmp_path):
        words = read(tmp_path / "t.csv", "x,c\n1,cat\n2,ant\n3,cat\n", label="c")
        numbers = read(tmp_path / "t.csv", "x,c\n1,10\n2,9\n3,10\n", label="c")
        assert words.class_names == ["ant", "cat"] and words.label.tolist() == [1, 0, 1]
        assert numbers.class_names == ["9", "10"] and numbers.label.tolist() == [1, 0, 1]

    def test_several_classes_a_row(self, tmp_path):
        table = read(tmp_path / "t.csv", "x,p,q\n1,0,1\n2,1,1\n", labels=["p", "q"])
        assert table.label.tolist() == [[0, 1], [1, 1]] and table.class_names == ["p", "q"]

    @pytest.mark.parametrize(
        ("text", "reader", "sentence"),
        [
            ("x,y\n1,2\n3\n", {}, r"line 3: 1 cells instead of the 2"),
            ("", {}, "is empty"),
            ("1,2\n3,4\n", {}, "first line holds numbers"),
            ("x,x\n1,2\n", {}, "names the columns x more than once"),
            ("x,y\n", {}, "holds no row"),
            ("x,y\n1,2\n", {"target": "z"}, "has no column 'z'"),
            ("y\n1\n", {"target": "y"}, "no column left for features"),
            ("x,y\n1,2\n1,much\n", {"target": "y"}, "line 3: y is 'much' instead of a number"),
            ("x,y\n1,inf\n", {"target": "y"}, "line 2: y is 'inf'"),
            ("x,c\n1,a\n1,\n", {"label": "c"}, r"1 rows have no class \(row 2"),
            ("x,p\n1,2\n", {"labels": ["p"]}, "line 2: p is 2 instead of 0 or 1"),
        ],
    )
    def test_broken_tables_are_answered(self, tmp_path, text, reader, sentence):
        with pytest.raises(InputError, match=sentence):
            read(tmp_path / "t.csv", text, **reader)

    def test_another_encoding_is_named(self, tmp_path):
        (tmp_path / "t.csv").write_bytes("x,größe\n1,2\n".encode("latin-1"))
        with pytest.raises(InputError, match="UTF-8"):
            read_csv_rows(tmp_path / "t.csv")

    def test_two_kinds_of_target_are_refused(self):
        with pytest.raises(InputError, match="one of label, labels and target"):
            CSVReader(**{**PLAIN, "label": "a", "target": "b"})

    def test_prediction_finds_its_columns_by_name_and_names_the_absent(self, tmp_path):
        (tmp_path / "t.csv").write_text("b,extra,a\n1,z,2\n")
        assert read_features(tmp_path / "t.csv", ["a", "b"], None).features.tolist() == [[2.0, 1.0]]
        with pytest.raises(InputError, match=r"lacks 1 of the 2 columns .*: extras \(did you mean extra"):
            read_features(tmp_path / "t.csv", ["a", "extras"], None)


class TestUnknownValues:
    TEXT = "x,z\n1,1\n?,2\n3,broken\n4,4\ninf,5\n"

    def test_they_are_refused_with_rows_and_columns(self, tmp_path):
        (tmp_path / "t.csv").write_text(self.TEXT)
        with pytest.raises(InputError, match=r"3 of 5 rows .* \(row 2, 3, 5, .*x, z \('broken'\)"):
            module(CSVReader(**PLAIN), tmp_path / "t.csv").setup("fit")

    def test_their_rows_are_dropped(self, tmp_path):
        (tmp_path / "t.csv").write_text(self.TEXT)
        data = module(CSVReader(**PLAIN), tmp_path / "t.csv", invalid="drop")
        with pytest.warns(UserWarning, match=r"3 of 5 rows .*most in x, z \('broken'\)\) and are left out"):
            data.setup("fit")
        assert data.table.features.tolist() == [[1.0, 1.0], [4.0, 4.0]]

    def test_the_training_rows_median_stands_for_them(self, tmp_path):
        (tmp_path / "t.csv").write_text(self.TEXT)
        data = module(CSVReader(**PLAIN), tmp_path / "t.csv", invalid="impute")
        with pytest.warns(UserWarning, match="3 of 5 rows .* the training rows' median stands for it"):
            data.setup("fit")
        filled = TableRows(data.table, np.arange(5), data.scaling()).features
        assert filled.tolist() == [[1, 1], [3, 2], [3, 3], [4, 4], [3, 5]]

    def test_nothing_left_says_which_columns(self, tmp_path):
        (tmp_path / "t.csv").write_text("x,z\n1,error a\n2,error b\n")
        with pytest.raises(InputError, match=r"each of the 2 rows .*z \('error a'\)"):
            module(CSVReader(**PLAIN), tmp_path / "t.csv", invalid="drop").setup("fit")


def numbered(n, label=None) -> Table:
    return Table(np.arange(n, dtype=float)[:, None], ["x"], "a table", label=label)


class TestSplits:
    def test_folds_are_scikit_learns(self):
        label = np.repeat([0, 1], [20, 10])
        plain = [Folds(5, False)(numbered(30), 3, f)[1].tolist() for f in range(5)]
        strata = [Folds(5, True)(numbered(30, label), 3, f)[1].tolist() for f in range(5)]
        assert plain == [t.tolist() for _, t in KFold(5, shuffle=True, random_state=3).split(np.zeros(30))]
        wanted = StratifiedKFold(5, shuffle=True, random_state=3).split(np.zeros(30), label)
        assert strata == [t.tolist() for _, t in wanted]

    def test_holdout_keeps_the_shares_of_the_classes(self):
        label = np.repeat([0, 1], [40, 10])
        train, test = Holdout(0.2, True)(numbered(50, label), 0, 0)
        assert sorted([*train, *test]) == list(range(50)) and label[test].sum() == 2
        assert Holdout(0.2, True)(numbered(50, label), 1, 0)[1].tolist() != test.tolist()

    @pytest.mark.parametrize(
        ("split", "label", "sentence"),
        [
            (lambda: Folds(1, False), None, "folds=1"),
            (lambda: Holdout(1.0, False), None, "test_share=1.0"),
            (lambda: Folds(9, False), None, "8 rows, fewer than"),
            (lambda: Folds(2, True), None, "not one class a row"),
            (lambda: Folds(2, True), np.array([0, 0, 0, 0, 0, 0, 0, 1]), "a single row"),
            (lambda: OfficialParts(), None, "no official"),
        ],
    )
    def test_impossible_splits_are_answered(self, split, label, sentence):
        with pytest.raises(InputError, match=sentence):
            split()(numbered(8, label), 0, 0)

    @pytest.mark.parametrize(("split", "sentence"), [(Folds(5, False), "from 0 to 4"), (AllRows(), "has no folds")])
    def test_a_fold_that_is_not_there_is_answered(self, split, sentence):
        with pytest.raises(InputError, match=sentence):
            split(numbered(8), 0, 5)


class TestScaling:
    X = np.random.default_rng(0).normal(size=(20, 4)) * [1, 10, 0, 3] + [0, 5, 0.1, -2]

    def test_it_is_scikit_learns_and_learnt_from_training_rows(self):
        train, test = self.X[:15], self.X[15:]
        varying = [0, 1, 3]
        for scale, reference in (("minmax", MinMaxScaler()), ("standard", StandardScaler())):
            ours = fit_scaling(train, scale, clip=False, drop_constant=True)
            theirs = reference.fit(train[:, varying])
            assert np.allclose(ours(test), theirs.transform(test[:, varying]), atol=1e-12)

    def test_a_constant_column_becomes_nothing_or_goes(self):
        for scale in ("minmax", "standard"):
            assert (fit_scaling(self.X, scale, False, False)(self.X)[:, 2] == 0).all()
        assert fit_scaling(self.X, "none", False, True)(self.X).shape == (20, 3)

    def test_clipping_keeps_judged_rows_where_training_rows_are(self):
        scaled = fit_scaling(self.X[:5], "minmax", clip=True, drop_constant=False)(self.X)
        assert scaled.min() == 0 and scaled.max() == 1

    def test_sparse_columns_that_vary_are_found_without_their_zeros(self):
        dense = np.array([[0.0, 1, 2, 0], [0, 1, 0, 0], [0, 1, 3, -1]])
        scaling = fit_scaling(sparse.csr_array(dense), "none", False, True)
        assert scaling.kept.tolist() == [False, False, True, True]
        assert scaling(sparse.csr_array(dense)).toarray().tolist() == dense[:, 2:].tolist()

    def test_judged_rows_change_nothing_that_is_learnt(self, tmp_path):
        rows = [f"{a},{b}" for a, b in np.random.default_rng(1).normal(size=(10, 2))]
        (tmp_path / "a.csv").write_text("\n".join(["x,y", *rows]) + "\n")
        data = module(
            CSVReader(**{**PLAIN, "target": "y"}), tmp_path / "a.csv", split=Folds(5, False), fold=2, scale="minmax"
        )
        data.setup("fit")
        for place in data.rows()[1]:
            rows[place] = "1000,1000"
        (tmp_path / "b.csv").write_text("\n".join(["x,y", *rows]) + "\n")
        other = module(
            CSVReader(**{**PLAIN, "target": "y"}), tmp_path / "b.csv", split=Folds(5, False), fold=2, scale="minmax"
        )
        other.setup("fit")
        for name in ("offset", "size", "median"):
            assert data.learnt[name].tolist() == other.learnt[name].tolist()
