"""ARFF files, dense and sparse, and the sentence for each way to break them."""

import warnings
from io import StringIO

import numpy as np
import pytest
from scipy import sparse
from scipy.io import arff as scipy_arff

from datamodules.arff import read_arff
from runs.errors import InputError

HEADER = """% a comment
@RELATION 'a set'

@attribute 'with blank' NUMERIC
@attribute colour {red, 'light blue', "x,y"}
@ATTRIBUTE on{0,1} % a remark
@attribute size real
@data
"""


def write(tmp_path, text, name="set.arff"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_dense_rows_are_what_scipy_reads(tmp_path):
    header = HEADER.replace("'light blue'", "green").replace('"x,y"', "blue").replace("on{0,1} % a remark", "on {0,1}")
    generator = np.random.default_rng(0)
    lines = [
        f"{x!r},{c},{o},{s!r}"
        for x, c, o, s in zip(
            generator.normal(size=20).tolist(), generator.choice(["red", "green", "blue"], 20),
            generator.integers(2, size=20), generator.normal(size=20).tolist(), strict=True,
        )
    ]  # fmt: skip
    path = write(tmp_path, header + "\n".join(lines))
    arff = read_arff(path)
    values, meta = scipy_arff.loadarff(StringIO(path.read_text()))
    assert arff.names == ["with blank", "colour", "on", "size"] and len(arff) == 20
    assert [attribute.kind for attribute in arff.attributes] == ["numeric", "nominal", "nominal", "numeric"]
    for place, name in enumerate(meta.names()):
        theirs = [word.decode() if isinstance(word, bytes) else word for word in values[name]]
        ours = arff.words(place)
        assert ours == theirs if place in (1, 2) else [float(word) for word in ours] == theirs
    assert arff.lines == list(range(9, 29))


def test_quotes_blanks_commas_comments_and_unknown_values(tmp_path):
    rows = "1.5,'light blue',0,?\n\n% not a row\n ?, \"x,y\" ,1,-2e3\n3,?,?,0\n"
    arff = read_arff(write(tmp_path, HEADER + rows))
    expected = [[1.5, 1, 0, np.nan], [np.nan, 2, 1, -2000], [3, np.nan, np.nan, 0]]
    np.testing.assert_array_equal(arff.values, expected)
    assert arff.words(1) == ["light blue", "x,y", "?"] and arff.words(0) == ["1.5", "?", "3"]
    assert arff.lines == [9, 12, 13]


def test_what_a_sparse_row_leaves_out_is_the_first_word_of_its_domain_and_the_number_zero(tmp_path):
    header = HEADER.replace("on{0,1}", "on{1,0}")
    arff = read_arff(write(tmp_path, header + "{0 2.5, 2 0}\n{}\n{1 'x,y' ,3 -1}\n{1 red, 2 1}\n"))
    assert sparse.issparse(arff.values)
    assert arff.words(0) == ["2.5", "0", "0", "0"]
    assert arff.words(1) == ["red", "red", "x,y", "red"]
    assert arff.words(2) == ["0", "1", "1", "1"]  # omitted: 1, which stands first
    assert arff.words(3) == ["0", "0", "-1", "0"]
    features, names = arff.features([0, 1, 2], "one_hot")
    assert sparse.issparse(features) and names == ["with blank", "colour=red", "colour=light blue", "colour=x,y", "on"]
    np.testing.assert_array_equal(
        features.toarray(), [[2.5, 1, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 1, 1], [0, 1, 0, 0, 1]]
    )


def test_sparse_and_dense_writing_of_the_same_rows_are_the_same_features(tmp_path):
    dense = write(tmp_path, HEADER + "1,red,1,0\n0,'light blue',0,2\n0,red,0,0\n", "dense.arff")
    thin = write(tmp_path, HEADER + "{0 1,2 1}\n{1 'light blue',3 2}\n{}\n", "sparse.arff")
    for nominal in ("one_hot", "number"):
        ours, names = read_arff(thin).features(range(4), nominal)
        theirs, same = read_arff(dense).features(range(4), nominal)
        assert names == same
        np.testing.assert_array_equal(ours.toarray(), theirs)


def test_nominal_features_as_columns_or_numbers(tmp_path):
    text = "@relation r\n@attribute a {2,10,1}\n@attribute b {no,yes}\n@attribute c {1,2}\n@data\n10,yes,2\n?,no,1\n"
    arff = read_arff(write(tmp_path, text))
    features, names = arff.features([0, 1, 2], "one_hot")
    assert names == ["a=2", "a=10", "a=1", "b", "c"]
    np.testing.assert_array_equal(features, [[0, 1, 0, 1, 2], [np.nan, np.nan, np.nan, 0, 1]])
    before = arff.values.copy()
    features, names = arff.features([2, 0], "number")
    np.testing.assert_array_equal(arff.values, before)
    assert names == ["c", "a"]
    np.testing.assert_array_equal(features, [[2, 1], [1, np.nan]])
    features, names = arff.features([0, 1, 2], "value")
    assert names == ["a", "b", "c"]
    np.testing.assert_array_equal(features, [[10, 1, 2], [np.nan, 0, 1]])


def test_words_that_should_be_numbers_and_are_none_are_named(tmp_path):
    arff = read_arff(write(tmp_path, "@relation r\n@attribute a {2,ten,1}\n@data\nten\n"))
    with pytest.raises(InputError, match=r"a has words that are no numbers \(2, ten, 1\): set data\.reader\.nominal="):
        arff.features([0], "value")


def test_text_columns_are_kept_as_words_and_are_no_features(tmp_path):
    text = "@relation r\n@attribute id string\n@attribute x real\n@data\nA_1  0.5\n'B 2'  1\n"
    arff = read_arff(write(tmp_path, text), blanks=True)
    assert arff.text == {"id": ["A_1", "B 2"]} and arff.words(0) == ["A_1", "B 2"]
    np.testing.assert_array_equal(arff.features([1], "one_hot")[0], [[0.5], [1.0]])
    with pytest.raises(InputError, match="id hold text, which is no feature: leave these columns out"):
        arff.features([0, 1], "one_hot")


def test_header_lines_without_their_comment_sign_are_passed_over_when_asked(tmp_path):
    path = write(tmp_path, HEADER.replace("% a comment", "% a comment that\ngoes on") + "1,red,1,0\n")
    with pytest.raises(InputError, match=r"line 2: 'goes on' is no @relation, @attribute or @data, and no comment"):
        read_arff(path)
    with pytest.warns(UserWarning, match=r"1 lines of the header .* passed over \(lines 2\)"):
        assert len(read_arff(path, header_notes=True)) == 1


def test_an_attribute_that_is_not_there_is_answered_with_the_nearest(tmp_path):
    arff = read_arff(write(tmp_path, HEADER + "1,red,1,0\n"))
    assert arff.place("size", "data.reader.label") == 3
    with pytest.raises(InputError, match=r"no attribute 'colour2' \(data.reader.label\): did you mean colour"):
        arff.place("colour2", "data.reader.label")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("1,red,1\n", "line 9: 3 values instead of one for each of 4 attributes"),
        ("1,red,1,0\n1,green,1,0\n", r"line 10: colour is 'green', which its domain does not have \(red, light blue"),
        ("1,red,1,0\nx,red,1,0\n", "line 10: with blank is 'x' instead of a finite number: mend it, or write ?"),
        ("1,red,1,0\n1,red,1,inf\n", "line 10: size is 'inf' instead of a finite number"),
        ("1,red,1,nan\n", "line 9: size is 'nan' instead of a finite number"),
        ("1,red,'1,0\n", "line 9: a quote is not closed"),
        ("{0 1}\n1,red,1,0\n", "line 10: a dense row in a file that begins with sparse rows"),
        ("1,red,1,0\n{0 1}\n", "line 10: a sparse row in a file that begins with dense rows"),
        ("{0 1,4 1}\n", "line 9: attribute 4 is out of range: there are 4, counted from 0"),
        ("{}\n{2 1,1 red}\n", "line 10: attribute 1 comes after attribute 2: their numbers must increase"),
        ("{2 1,2 1}\n", "line 9: attribute 2 comes after attribute 2"),
        ("{0 1,x 1}\n", "line 9: 'x 1' must be the number of an attribute, a blank and a value"),
        ("{0 1,1}\n", "line 9: '1' must be the number of an attribute"),
        ("{1 'light blue,2 1}\n", "line 9: '1 'light blue,2 1' must be the number of an attribute"),
        ("{0 1,2 1\n", "line 9: a sparse row must end with a brace"),
        ("{2 7}\n", r"line 9: on is '7', which its domain does not have \(0, 1\)"),
        ("{0 NaN}\n", "line 9: with blank is 'NaN' instead of a finite number"),
        ("% nothing\n", "holds no row below @data"),
    ],
)
def test_broken_rows_are_named_by_file_and_line(tmp_path, rows, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        read_arff(write(tmp_path, HEADER + rows))
    assert str(tmp_path / "set.arff") in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("@relation r\n@attribute a real\n1\n", "line 3: '1' is no @relation"),
        ("@relation r\n@attribute a real\n", "has no line @data"),
        ("@relation r\n@data\n1\n", "line 2: @data comes before any @attribute"),
        ("@relation r\n@attribute a\n@data\n1\n", "line 2: an attribute needs a name and a type"),
        ("@relation r\n@attribute a date\n@data\n1\n", "line 2: the type of 'a' is 'date': numeric, real"),
        ("@relation r\n@attribute a {x,y\n@data\nx\n", "line 2: the domain of 'a' has no closing brace"),
        ("@relation r\n@attribute a {x,,y}\n@data\nx\n", "line 2: the domain of 'a' has an empty word"),
        ("@relation r\n@attribute a {x,x}\n@data\nx\n", "line 2: the domain of 'a' names x more than once"),
        ("@attribute a real\n@attribute a real\n@data\n1,1\n", "line 2: there are two attributes 'a'"),
        ("@attribute a string\n@attribute b real\n@data\n{1 1}\n", r"text \(a\) in sparse rows is not read"),
    ],
)
def test_broken_headers_are_named_by_file_and_line(tmp_path, text, sentence):
    with pytest.raises(InputError, match=sentence):
        read_arff(write(tmp_path, text))


def test_a_missing_file_and_another_encoding_are_said(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_arff(tmp_path / "gone.arff")
    (tmp_path / "latin.arff").write_bytes(HEADER.replace("red", "röd").encode("latin-1"))
    with pytest.raises(InputError, match="is not written in UTF-8"):
        read_arff(tmp_path / "latin.arff")


@pytest.mark.parametrize(
    ("name", "shape", "settings"),
    [
        ("uci_small/iris", (150, 5), {}),
        ("uci_small/wine", (178, 14), {"header_notes": True}),
        ("uci_small/yeast", (1484, 10), {"blanks": True}),
        ("uci_small/german", (1000, 21), {}),
        ("uci_small/glass", (214, 10), {}),
        ("mulan_multilabel/Birds", (645, 279), {}),
        ("mulan_multilabel/GnegativeGO", (1392, 1725), {}),
    ],
)
def test_real_files_are_read_whole(sample_data, name, shape, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_arff(sample_data / f"{name}.arff", **settings).values.shape == shape
