"""Tables of fish toxicity: official files, descriptors with text in cells, UCI's set, a generated one; splits."""

from typing import ClassVar

import numpy as np
import pytest

from datamodules.lc50 import (
    PARTS,
    UCI_COLUMNS,
    DescriptorReader,
    GeneratedToxicity,
    TESTReader,
    ToxicitySplit,
    UCIFishReader,
)
from datamodules.table import TableDataModule
from datamodules.table_files import Table
from runs.errors import InputError

TRAIN = 'CAS,Tox,x0,"a,b",c\n50-06-6,2.681,1,2,7\n50-29-3,7.271,3,4,7\n50-31-7,4.424,0,9,7\n'
TEST = 'CAS,Tox,x0,"a,b",c\n51-28-5,4.1,9,1,8\n'


def official(folder, train=TRAIN, test=TEST):
    for part, text in (("train", train), ("test", test)):
        if text is not None:
            (folder / PARTS[part]).write_text(text)
    return folder


def module(reader, root, **changes) -> TableDataModule:
    settings = {
        "reader": reader, "root": str(root), "split": ToxicitySplit("official", 0.2, 5, "honest"), "fold": 0,
        "scale": "minmax", "clip": True, "drop_constant": True, "invalid": "drop", "batch_size": 8,
        "predict_root": None, "identifier": "CAS", "seed": 1,
    }  # fmt: skip
    return TableDataModule(**{**settings, **changes})


class TestOfficialFiles:
    def test_both_parts_are_read_with_their_names_and_targets(self, tmp_path):
        table = TESTReader().read(official(tmp_path))
        assert table.columns == ["x0", "a,b", "c"] and table.identifiers[-1] == "51-28-5"
        assert table.parts.tolist() == ["train", "train", "train", "test"]
        assert table.target.tolist() == [2.681, 7.271, 4.424, 4.1]
        assert table.features.tolist() == [[1, 2, 7], [3, 4, 7], [0, 9, 7], [9, 1, 8]]

    @pytest.mark.parametrize(
        ("train", "test", "sentence"),
        [
            (TRAIN, None, r"has no LC50_prediction_set-2d\.csv: it must be the folder"),
            (TRAIN, TEST.replace("x0", "y0"), r"other columns than LC50_training_set-2d\.csv \(x0, y0\)"),
            (TRAIN, TEST.replace('x0,"a,b"', '"a,b",x0'), r"\(in another order\): both first lines must be the same"),
            (TRAIN, TEST.replace("51-28-5", "50-29-3"), r"1 values of CAS are there more than once \(50-29-3\)"),
            (TRAIN.replace("7.271", "toxic"), TEST, r"line 3: Tox is 'toxic' instead of a number"),
            (TRAIN.replace("7.271", "inf"), TEST, r"line 3: Tox is 'inf'"),
            (TRAIN.replace("Tox", "y"), TEST.replace("Tox", "y"), "has no column 'Tox'"),
            (TRAIN, TEST.partition("\n")[0] + "\n", "holds no row"),
        ],
    )
    def test_what_is_wrong_is_one_sentence(self, tmp_path, train, test, sentence):
        with pytest.raises(InputError, match=sentence):
            TESTReader().read(official(tmp_path, train, test))

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(InputError, match=r"gone does not exist: it must be the folder of the LC50 set"):
            module(TESTReader(), tmp_path / "gone").setup("fit")

    def test_columns_are_chosen_and_scaled_by_training_rows_alone(self, tmp_path):
        data = module(TESTReader(), official(tmp_path))
        data.setup("fit")
        train, test = data.rows()
        assert (train.tolist(), test.tolist()) == ([0, 1, 2], [3])
        assert data.columns == ["x0", "a,b"]  # c varies only with the judged row
        assert data.scaling()(data.table.features[test]).tolist() == [[1.0, 0.0]]  # 9 of 0..3 and 1 of 2..9, clipped

    def test_the_real_files_are_as_their_page_says(self, sample_data):
        """Q1."""
        data = module(TESTReader(), sample_data / "lc50_fathead_minnow")
        data.setup("fit")
        train, test = data.rows()
        y = data.table.target
        assert (len(train), len(test), len(data.table.columns), len(data.columns)) == (659, 164, 797, 592)
        assert (y.min(), y.max(), np.median(y)) == (0.037, 9.261, 3.959)
        assert (round(y.mean(), 4), round(y.std(ddof=1), 4)) == (4.0519, 1.4898)
        assert (round(y[train].mean(), 4), round(y[train].std(ddof=1), 4)) == (4.0423, 1.4957)


class TestDescriptors:
    TEXT = (
        "SMILES,LC50,ABC,MAXdO,note\n"
        "CCO,2.5,1.0,0.5,n\nCCC,3.5,2.0,max() arg is an empty sequence (MAXdO),n\nCO,4.5,3.0,1.5,n\n"
        "CN,1.5,4.0,2.5,n\n"
    )
    BOTH: ClassVar = {
        "target": "LC50",
        "minus_log10_lc50": False,
        "identifier": "SMILES",
        "descriptors": None,
        "separator": "comma",
    }

    def read(self, path, text=TEXT, **changes):
        path.write_text(text)
        return DescriptorReader(**{**self.BOTH, "left_out": ["note"], **changes}).read(path)

    def test_a_target_keeps_its_columns_name_unless_it_is_said_to_be_a_toxicity(self, tmp_path):
        assert self.read(tmp_path / "t.csv").target_name == "LC50"
        assert self.read(tmp_path / "t.csv", minus_log10_lc50=True).target_name == "-log10(LC50, mol/L)"

    def test_cells_may_be_separated_otherwise(self, tmp_path):
        (tmp_path / "names.txt").write_text("ABC\n")
        table = self.read(tmp_path / "t.csv", self.TEXT.replace(",", ";"), separator="semicolon")
        assert table.columns == ["ABC", "MAXdO"] and table.identifiers == ["CCO", "CCC", "CO", "CN"]
        chosen = {"descriptors": str(tmp_path / "names.txt"), "separator": "semicolon"}
        assert self.read(tmp_path / "t.csv", self.TEXT.replace(",", ";"), **chosen).columns == ["ABC"]
        with pytest.raises(InputError, match=r"separated by semicolons .*: set data\.reader\.separator=semicolon"):
            self.read(tmp_path / "t.csv", self.TEXT.replace(",", ";"))

    def test_rows_need_no_names(self, tmp_path):
        table = self.read(tmp_path / "t.csv", identifier=None, left_out=["note", "SMILES"])
        assert table.identifiers is None and table.columns == ["ABC", "MAXdO"]

    def test_text_in_cells_is_unknown_and_its_row_left_out_with_a_count(self, tmp_path):
        assert self.read(tmp_path / "t.csv").columns == ["ABC", "MAXdO"]
        reader = DescriptorReader(**self.BOTH, left_out=["note"])
        split = ToxicitySplit("repeated", 0.34, 5, "honest")
        data = module(reader, tmp_path / "t.csv", split=split, identifier="SMILES")
        with pytest.warns(UserWarning, match=r"1 of 4 rows .*MAXdO \('max\(\) arg is .*and are left out"):
            data.setup("fit")
        assert data.table.identifiers == ["CCO", "CO", "CN"] and data.table.target.tolist() == [2.5, 4.5, 1.5]
        kept = module(reader, tmp_path / "t.csv", split=split, invalid="impute", identifier="SMILES")
        with pytest.warns(UserWarning, match="the training rows' median stands for it"):
            kept.setup("fit")
        assert len(kept.table) == 4

    def test_where_every_row_has_text_its_columns_are_named(self, tmp_path):
        text = "SMILES,LC50,ABC,BAD\nCCO,2.5,1.0,error\nCCC,3.5,2.0,error\n"
        (tmp_path / "t.csv").write_text(text)
        data = module(DescriptorReader(**self.BOTH, left_out=[]), tmp_path / "t.csv")
        with pytest.raises(InputError, match=r"each of the 2 rows has .*\(most in BAD \('error'\)\)"):
            data.setup("fit")

    def test_descriptors_may_be_named_by_a_file(self, tmp_path):
        (tmp_path / "names.txt").write_text("ABC\n\n")
        assert self.read(tmp_path / "t.csv", descriptors=str(tmp_path / "names.txt")).columns == ["ABC"]
        (tmp_path / "names.txt").write_text("ABC\nMAXd0\n")
        with pytest.raises(InputError, match=r"lacks 1 of the 2 descriptors .*MAXd0 \(did you mean MAXdO"):
            self.read(tmp_path / "t.csv", descriptors=str(tmp_path / "names.txt"))
        with pytest.raises(InputError, match=r"data\.reader\.descriptors=.*none\.txt does not exist"):
            self.read(tmp_path / "t.csv", descriptors=str(tmp_path / "none.txt"))

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            (TEXT.replace("4.5", "nan"), "line 4: LC50 is 'nan' instead of a number"),
            (TEXT.replace("CO,4.5", "CCO,4.5"), r"1 values of SMILES are there more than once \(CCO\)"),
            (TEXT.replace("SMILES", "smile"), "has no column 'SMILES'"),
        ],
    )
    def test_what_is_wrong_is_one_sentence(self, tmp_path, text, sentence):
        with pytest.raises(InputError, match=sentence):
            self.read(tmp_path / "t.csv", text)


class TestUCI:
    TEXT = "3.26;0.829;1.676;0;1;1.453;3.770\n2.189;0.58;0.863;0;0;1.348;3.115\n"

    def test_it_is_read_from_its_folder_and_as_a_file(self, tmp_path):
        path = tmp_path / "qsar_fish_toxicity.csv"
        path.write_text(self.TEXT)
        for root in (tmp_path, path):
            table = UCIFishReader().read(root)
            assert table.columns == UCI_COLUMNS and table.target.tolist() == [3.77, 3.115]
            assert table.features[1].tolist() == [2.189, 0.58, 0.863, 0, 0, 1.348]

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("1;2;3\n", "line 1: 3 cells instead of 7"),
            (TEXT.replace("0.58", "x"), "line 2: 'x' instead of a number"),
            (TEXT.replace("3.770", "inf"), "line 1: 'inf' instead of a number"),
            ("", "is empty"),
            (None, "there is no file"),
        ],
    )
    def test_what_is_wrong_is_one_sentence(self, tmp_path, text, sentence):
        if text is not None:
            (tmp_path / "qsar_fish_toxicity.csv").write_text(text)
        with pytest.raises(InputError, match=sentence):
            UCIFishReader().read(tmp_path)


class TestGenerated:
    SMALL = GeneratedToxicity(rows=60, columns=5, tails=6, noise=0.0, test_share=0.2, seed=3)

    def test_it_is_a_real_folder_in_the_official_layout_that_follows_its_formula(self, tmp_path):
        self.SMALL.write(tmp_path / "made")
        table = TESTReader().read(tmp_path / "made")
        assert len(table) == 66 and (table.parts == "test").sum() == 13
        body = np.array([int(name.partition("-")[2]) < 60 for name in table.identifiers])
        x, y = table.features[body], table.target[body]
        formula = 4 + 3 * (x[:, 0] - 0.5) + 2 * np.sin(3 * x[:, 1]) + x[:, 2] * x[:, 3]
        assert np.abs(y - formula).max() < 0.001
        tails = np.sort(table.target[~body])
        assert (tails[:3] < y.min() - 0.1).all() and (tails[3:] > y.max() + 0.1).all()
        assert (np.diff(np.sort(table.target))[[0, 1, 2, -1, -2, -3]] > 0.1).all()

    def test_equal_parameters_give_equal_files_and_foreign_folders_stay(self, tmp_path):
        for name in ("a", "b"):
            self.SMALL.write(tmp_path / name)
        assert (tmp_path / "a" / PARTS["train"]).read_bytes() == (tmp_path / "b" / PARTS["train"]).read_bytes()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "x.txt").write_text("x")
        with pytest.raises(InputError, match="holds something else than generated chemicals"):
            self.SMALL.write(tmp_path / "mine")


def numbered(n, parts=None) -> Table:
    return Table(np.arange(n, dtype=float)[:, None], ["x"], "a table", parts=parts)


class TestSplits:
    PARTED = numbered(40, np.repeat(["train", "test"], [30, 10]))

    def split(self, kind, protocol="honest"):
        return ToxicitySplit(kind, 0.2, 5, protocol)

    def test_official_parts(self):
        train, test = self.split("official")(self.PARTED, 1, 0)
        assert train.tolist() == list(range(30)) and test.tolist() == list(range(30, 40))
        with pytest.raises(InputError, match=r"set data\.split\.kind=repeated or folds"):
            self.split("official")(numbered(8), 1, 0)

    def test_each_seed_draws_its_own_fifth(self):
        drawn = [self.split("repeated")(self.PARTED, seed, 0) for seed in (1, 2, 1)]
        assert all(sorted([*train, *test]) == list(range(40)) and len(test) == 8 for train, test in drawn)
        assert drawn[0][1].tolist() == drawn[2][1].tolist() != drawn[1][1].tolist()

    @pytest.mark.parametrize(("table", "rows"), [(PARTED, 30), (numbered(23), 23)])
    def test_folds_are_of_the_training_part_alone_and_judge_each_row_once(self, table, rows):
        folds = [self.split("folds")(table, 1, fold) for fold in range(5)]
        assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(rows))
        assert all(sorted([*train, *test]) == list(range(rows)) for train, test in folds)

    @pytest.mark.parametrize("kind", ["official", "repeated", "folds"])
    def test_only_the_leaky_protocol_trains_on_judged_rows(self, kind):
        train, test = self.split(kind)(self.PARTED, 1, 0)
        leaky_train, leaky_test = self.split(kind, "leaky_paper")(self.PARTED, 1, 0)
        assert not set(train) & set(test) and leaky_test.tolist() == test.tolist()
        assert leaky_train.tolist() == sorted([*train, *test])
