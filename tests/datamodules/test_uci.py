"""UCI sets in ARFF, MATLAB and text files: the official layouts, their quirks, and what can be wrong with them."""

import numpy as np
import pytest
from scipy.io import savemat

from datamodules.uci import ARFFSet, MatSet, TextSet
from runs.errors import InputError

ARFF = {
    "file": "s.arff", "label": "class", "left_out": [], "classes": None, "nominal": "number", "header_notes": False,
    "blanks": False,
}  # fmt: skip
MAT = {"file": "s.mat", "features": "data", "label": "label", "classes": None}
TEXT = {
    "file": "s.dat", "separator": "comma", "columns": ["a", "b", "class"], "label": "class", "left_out": [],
    "classes": None,
}  # fmt: skip

PATIENTS = """% a comment
@relation patients
@attribute id integer
@attribute class {M,B}
@attribute size real
@attribute place {north,south}
@data
11,M,1.5,south
12,B,2.5,north
13,B,?,north
"""


def arff(folder, text=PATIENTS, **changes):
    (folder / "s.arff").write_text(text)
    return ARFFSet(**{**ARFF, **changes}).read(folder)


class TestARFF:
    def test_the_class_may_stand_anywhere_and_identifiers_are_left_out(self, tmp_path):
        table = arff(tmp_path, left_out=["id"], classes={"B": "benign", "M": "malignant"})
        assert table.columns == ["size", "place"]
        assert np.array_equal(table.features, [[1.5, 1.0], [2.5, 0.0], [np.nan, 0.0]], equal_nan=True)
        assert table.class_names == ["benign", "malignant"] and table.label.tolist() == [1, 0, 0]

    def test_the_class_is_no_feature(self, tmp_path):
        """Read as a feature it would give an accuracy of 100 %."""
        assert "class" not in arff(tmp_path).columns

    def test_the_file_itself_may_be_named(self, tmp_path):
        arff(tmp_path)
        assert len(ARFFSet(**{**ARFF, "file": "other.arff"}).read(tmp_path / "s.arff")) == 3

    def test_headers_that_lost_their_comment_signs_are_read_where_asked(self, tmp_path):
        text = PATIENTS.replace("% a comment", "% a comment\n(a) that was wrapped")
        with pytest.warns(UserWarning, match="passed over"):
            assert len(arff(tmp_path, text, header_notes=True)) == 3
        with pytest.raises(InputError, match="line 2"):
            arff(tmp_path, text)

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"label": "clas"}, r"no attribute 'clas' \(data\.reader\.label\): did you mean class"),
            ({"left_out": ["ident"]}, r"no attribute 'ident' \(data\.reader\.left_out\)"),
            ({"left_out": ["id", "size", "place"]}, "no attribute left for features"),
            ({"classes": {"M": "malignant"}}, r"B is none of the classes M \(data\.reader\.classes\)"),
        ],
    )
    def test_what_is_not_there_is_named(self, tmp_path, changes, sentence):
        with pytest.raises(InputError, match=sentence):
            arff(tmp_path, **changes)


class TestMat:
    def test_classes_may_be_a_column_or_a_row(self, tmp_path):
        data = np.arange(8).reshape(4, 2).astype(np.uint8)
        for shape in ((4, 1), (1, 4)):
            savemat(tmp_path / "s.mat", {"data": data, "label": np.array([2, 1, 2, 2], np.uint8).reshape(shape)})
            table = MatSet(**{**MAT, "classes": {"1": "bad", "2": "good"}}).read(tmp_path)
            assert table.label.tolist() == [1, 0, 1, 1] and table.class_names == ["bad", "good"]
            assert table.features.dtype == np.float64 and table.features.tolist() == data.tolist()
            assert table.columns == ["x1", "x2"]

    @pytest.mark.parametrize(
        ("content", "changes", "sentence"),
        [
            ({"data": np.eye(3), "label": np.ones((2, 1))}, {}, "label has 2 classes for 3 rows"),
            ({"daten": np.eye(3), "label": np.ones((3, 1))}, {}, r"no variable 'data' .*: did you mean daten"),
            ({"data": np.eye(3)}, {}, r"no variable 'label' \(data\.reader\.label\)"),
            ({"data": "words", "label": np.ones((3, 1))}, {}, "data holds .* instead of numbers"),
            ({"data": np.zeros((2, 2, 2)), "label": np.ones((2, 1))}, {}, "instead of rows x columns"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_used_is_named(self, tmp_path, content, changes, sentence):
        savemat(tmp_path / "s.mat", content)
        with pytest.raises(InputError, match=sentence):
            MatSet(**{**MAT, **changes}).read(tmp_path)

    def test_another_file_of_that_name_is_named(self, tmp_path):
        (tmp_path / "s.mat").write_text("x,y\n1,2\n")
        with pytest.raises(InputError, match="cannot be read as a MATLAB file"):
            MatSet(**MAT).read(tmp_path)

    def test_unknown_values_stay_unknown(self, tmp_path):
        savemat(tmp_path / "s.mat", {"data": np.array([[1.0, np.inf], [np.nan, 2.0]]), "label": np.array([[1], [2]])})
        assert np.isnan(MatSet(**MAT).read(tmp_path).features).sum() == 2


class TestText:
    def test_classes_of_the_file_may_be_merged(self, tmp_path):
        """CMC: no use against the two others."""
        (tmp_path / "s.dat").write_text("1,2,1\n3,4,2\n5,6,3\n\n")
        table = TextSet(**{**TEXT, "classes": {"1": "no_use", "2": "use", "3": "use"}}).read(tmp_path)
        assert table.class_names == ["no_use", "use"] and table.label.tolist() == [0, 1, 1]
        assert table.columns == ["a", "b"] and table.features.tolist() == [[1, 2], [3, 4], [5, 6]]

    def test_cells_may_be_divided_by_blanks(self, tmp_path):
        (tmp_path / "s.dat").write_text("1  2 0\n 3 ? 1\n")
        table = TextSet(**{**TEXT, "separator": "blank"}).read(tmp_path)
        assert np.array_equal(table.features, [[1, 2], [3, np.nan]], equal_nan=True) and not table.text

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("1,2,1\n3,4\n", "line 2: 2 cells instead of the 3 columns"), ("\n", "holds no row"),
            ("1,2,\n1,2,1\n", "1 rows have no class"),
        ],
    )  # fmt: skip
    def test_a_broken_file_is_named(self, tmp_path, text, sentence):
        (tmp_path / "s.dat").write_text(text)
        with pytest.raises(InputError, match=sentence):
            TextSet(**TEXT).read(tmp_path)

    def test_a_label_that_is_no_column_is_named_at_once(self):
        with pytest.raises(InputError, match=r"data\.reader\.label=klass is no column: did you mean class"):
            TextSet(**{**TEXT, "label": "klass"})

    def test_text_among_the_numbers_is_kept_for_the_message(self, tmp_path):
        (tmp_path / "s.dat").write_text("1,two,1\n3,4,2\n")
        assert TextSet(**TEXT).read(tmp_path).text == {"b": "two"}


def test_a_folder_without_the_file_names_what_is_like_it(tmp_path):
    (tmp_path / "s.arf").write_text("")
    with pytest.raises(InputError, match=r"holds no s\.arff \(data\.reader\.file\): did you mean s\.arf"):
        ARFFSet(**ARFF).read(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [
        ("iris", (150, 4), [50, 50, 50]),
        ("wine", (178, 13), [59, 71, 48]),
        ("wdbc", (569, 30), [357, 212]),
        ("glass", (214, 9), [70, 76, 13, 29, 9, 17]),
        ("ecoli", (336, 7), [143, 77, 2, 2, 35, 20, 5, 52]),
        ("heart", (270, 13), [150, 120]),
        ("iono", (351, 34), [126, 225]),
        ("german", (1000, 24), [300, 700]),
        ("german_symbolic", (1000, 58), [300, 700]),
        ("breast", (277, 9), [81, 196]),
        ("dna", (2000, 180), [464, 485, 1051]),
        ("spambase", (4601, 57), [1813, 2788]),
        ("yeast", (1484, 8), [463, 5, 35, 44, 51, 163, 244, 429, 20, 30]),
        ("banknote", (1372, 4), [762, 610]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*passed over.*")
def test_the_real_files_by_their_configs(sample_data, name, shape, counts):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from runs.composition import PROJECT_ROOT

    config = OmegaConf.load(PROJECT_ROOT / "conf" / "data" / f"uci_{name}.yaml")
    table = instantiate(config.reader, _convert_="all").read(sample_data / "uci_small")
    assert table.features.shape == shape and len(table.columns) == shape[1]
    assert np.bincount(table.label).tolist() == counts and not np.isnan(table.features).any()
