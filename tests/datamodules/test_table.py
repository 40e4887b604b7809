"""Tables: reading, unknown values, splits, scaling by the training rows alone."""

import logging

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

PLAIN = {
    "label": None, "labels": [], "target": None, "identifier": None, "left_out": [], "separator": "comma",
    "missing_label": "refuse",
}  # fmt: skip


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
            ("x,c\n1,\n1,?\n", {"label": "c", "missing_label": "keep"}, "none of the 2 rows has a class"),
            ("x,p\n1,2\n", {"labels": ["p"]}, "line 2: p is '2' instead of 0 or 1"),
            ("x,p\n1,yes\n", {"labels": ["p"]}, "line 2: p is 'yes' instead of 0 or 1"),
            ("x,p,q\n1,0,1\n1,,1\n", {"labels": ["p", "q"], "missing_label": "keep"}, "line 3: p is '' instead of 0"),
            ("x,p\n1,\n", {"labels": ["p"], "missing_label": "keep"}, "no row has a 0 or 1 in p"),
            ("x;y\n1;2,5\n", {"separator": "comma"}, "separated by semicolons .* set data.reader.separator=semicolon"),
            ("x\ty\n1\t2\n", {}, "separated by tabs and not by commas: set data.reader.separator=tab"),
            ("x,y\n1,2\n", {"separator": "tab"}, "separated by commas and not by tabs: set .*separator=comma"),
        ],
    )
    def test_broken_tables_are_answered(self, tmp_path, text, reader, sentence):
        with pytest.raises(InputError, match=sentence):
            read(tmp_path / "t.csv", text, **reader)

    def test_cells_may_be_separated_otherwise(self, tmp_path):
        for name, mark in (("semicolon", ";"), ("tab", "\t")):
            table = read(
                tmp_path / "t.csv",
                f'x{mark}note{mark}y\n1{mark}"a{mark} b"{mark}2\n',
                separator=name,
                left_out=["note"],
            )
            assert table.columns == ["x", "y"] and table.features.tolist() == [[1.0, 2.0]]
            found = read_features(tmp_path / "t.csv", ["y", "x"], "note", name)
            assert found.features.tolist() == [[2.0, 1.0]] and found.identifiers == [f"a{mark} b"]

    def test_rows_without_a_class_are_kept_where_that_is_asked(self, tmp_path):
        text = "x,c,p,q\n1,10,1,0\n2,,,\n3,9,0,1\n4,NA,?,\n"
        one = read(tmp_path / "t.csv", text, label="c", left_out=["p", "q"], missing_label="keep")
        assert one.label.tolist() == [1, -1, 0, -1] and one.class_names == ["9", "10"]
        several = read(tmp_path / "t.csv", text, labels=["p", "q"], left_out=["c"], missing_label="keep")
        assert several.label.tolist() == [[1, 0], [-1, -1], [0, 1], [-1, -1]]
        assert one.labelled.tolist() == several.labelled.tolist() == [True, False, True, False]

    def test_a_method_that_learns_from_classes_alone_says_what_to_do_with_other_rows(self, tmp_path):
        (tmp_path / "t.csv").write_text("x,c\n1,a\n2,\n3,b\n")
        reader = CSVReader(**{**PLAIN, "label": "c", "missing_label": "keep"})
        with pytest.raises(
            InputError, match=r"1 of 3 rows have no class, and this method has no use .*: complete them"
        ):
            module(reader, tmp_path / "t.csv").setup("fit")

    def test_what_each_column_is_taken_for_is_said_once(self, tmp_path, caplog):
        """So a class column of numbers that was forgotten is seen among the features."""
        with caplog.at_level(logging.INFO, logger="reprise"):
            read(tmp_path / "t.csv", "id,a,b,kind,note\np,1,2,0,m\nq,3,4,1,n\n", identifier="id", left_out=["note"])
            read(tmp_path / "t.csv", "a,b,kind\n1,2,x\n3,4,\n", label="kind", missing_label="keep")
        assert caplog.messages == [
            "features: a, b, kind (3); names: id; left out: note",
            "features: a, b (2); label: kind (1 of 2 rows have none)",
        ]

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
        (tmp_path / "t.csv").write_text("x,z\n1,error a\n?,2\n")
        with pytest.raises(InputError, match=r"each of the 2 rows .*x, z \('error a'\)"):
            module(CSVReader(**PLAIN), tmp_path / "t.csv", invalid="drop").setup("fit")

    @pytest.mark.parametrize("invalid", ["refuse", "drop", "impute"])
    @pytest.mark.parametrize(
        ("text", "reader", "sentence"),
        [
            ("id,x\nS0,1\nS1,2\n", {}, r"no number in any of the 2 rows of id \('S0'\): set data\.identifier=id \("),
            ("x,colour\n1,red\n2,red\n", {}, r"colour \('red'\): set .*left_out=\[colour\] \(or .*label=colour"),
            ("x,colour,y\n1,red,2\n2,red,3\n", {"target": "y"}, r"set data\.reader\.left_out=\[colour\]$"),
            (
                "id,x,colour,note\nS0,1,red,m\nS1,2,red,n\n", {"left_out": ["note"]},
                r"id \('S0'\), colour \('red'\): set data\.identifier=id .* and data\.reader\.left_out=\[note,colour\]",
            ),
            ("x,z\n1,\n2,\n", {"label": "x"}, r"of z \(no value\): set data\.reader\.left_out=\[z\]$"),
            ("x,z\n1,\"2,5\"\n2,\"3,5\"\n", {}, r"of z \('2,5'\): write decimals with a point"),
        ],
    )  # fmt: skip
    def test_a_column_without_any_number_is_no_feature(self, tmp_path, invalid, text, reader, sentence):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(InputError, match=sentence):
            module(CSVReader(**{**PLAIN, **reader}), tmp_path / "t.csv", invalid=invalid).setup("fit")

    def test_where_constant_columns_go_a_column_without_any_number_goes_with_them(self, tmp_path):
        (tmp_path / "t.csv").write_text("x,z\n1,error a\n2,error b\n")
        data = module(CSVReader(**PLAIN), tmp_path / "t.csv", invalid="impute", drop_constant=True)
        with pytest.warns(UserWarning, match=r"2 of 2 rows .*most in z"):
            data.setup("fit")
        assert data.columns == ["x"]

    @pytest.mark.parametrize("invalid", ["refuse", "drop"])
    def test_in_prediction_the_sentence_names_row_and_column_and_what_works_there(self, tmp_path, invalid):
        (tmp_path / "t.csv").write_text("x;z\n1;1\n2;3\n")
        (tmp_path / "new.csv").write_text("z;x\n1;1\n?;2\n")
        reader = CSVReader(**{**PLAIN, "separator": "semicolon"})
        data = module(reader, tmp_path / "t.csv", invalid=invalid, predict_root=str(tmp_path / "new.csv"))
        data.setup("fit")
        assert data.columns == ["x", "z"]
        with pytest.raises(InputError, match=r"1 of 2 rows .*\(row 2, .* most in z\): .*or set data\.invalid=impute$"):
            data.predict_dataloader()
        data.invalid, data.trainer = "impute", type("Trainer", (), {"global_rank": 0, "world_size": 1})()
        with pytest.warns(UserWarning, match="median stands for it"):
            (batch,) = list(data.predict_dataloader())
        assert batch["features"].tolist() == [[1.0, 1.0], [2.0, 2.0]]


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
