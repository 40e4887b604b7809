"""Mulan's two files as a table, generated ones too, and what can be wrong with them."""

import numpy as np
import pytest
from scipy import sparse

from datamodules.generated_label_sets import GeneratedLabelSets
from datamodules.mulan import MulanReader, read_label_names
from datamodules.table import TableDataModule, fit_scaling
from datamodules.table_splits import Folds
from runs.errors import InputError

XML = '<?xml version="1.0"?>\n<labels xmlns="http://mulan.sourceforge.net/labels">{}</labels>'
SPARSE = """@relation s
@attribute rain {0,1}
@attribute f1 numeric
@attribute wind {1,0}
@attribute f2 {0,1}
@attribute sun {0,1}
@data
{0 1,1 3}
{2 0,3 1}
{2 0,4 1}
"""


def write(folder, arff=SPARSE, labels=("sun", "wind", "rain"), name="Set"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.arff").write_text(arff)
    (folder / f"{name}.xml").write_text(XML.format("".join(f'<label name="{label}"/>' for label in labels)))
    return folder


def reader(**changes):
    settings = {"name": "Set", "nominal": "one_hot", "dense": False, "subset_rows": None, "subset_seed": 0}
    return MulanReader(**{**settings, **changes})


def test_labels_are_chosen_by_name_wherever_they_stand_and_keep_the_files_order(tmp_path):
    table = reader().read(write(tmp_path))
    assert table.class_names == ["rain", "wind", "sun"] and table.columns == ["f1", "f2"]
    np.testing.assert_array_equal(table.features.toarray(), [[3, 0], [0, 1], [0, 0]])
    # An omitted label is the first word of its domain: for wind that is 1.
    np.testing.assert_array_equal(table.label, [[1, 1, 0], [0, 0, 0], [0, 0, 1]])


def test_the_same_set_with_its_labels_first_or_last_is_the_same_table(tmp_path):
    generator = np.random.default_rng(0)
    features, labels = generator.integers(2, size=(30, 5)), generator.integers(2, size=(30, 3))
    tables = []
    for folder, order in (("first", (1, 0)), ("last", (0, 1))):
        names = [[f"f{i}" for i in range(5)], [f"l{i}" for i in range(3)]]
        values = np.hstack([(features, labels)[part] for part in order])
        head = "\n".join(f"@attribute {name} {{0,1}}" for part in order for name in names[part])
        rows = "\n".join("{" + ",".join(f"{i} 1" for i in np.flatnonzero(row)) + "}" for row in values)
        tables.append(
            reader().read(write(tmp_path / folder, f"@relation r\n{head}\n@data\n{rows}\n", ["l2", "l0", "l1"]))
        )
    for table in tables:
        np.testing.assert_array_equal(table.label, labels)
        np.testing.assert_array_equal(table.features.toarray(), features)


def test_dense_fills_up_so_that_scaling_works_and_without_it_scaling_is_refused(tmp_path):
    table = reader(dense=True).read(write(tmp_path))
    assert fit_scaling(table.features, "standard", False, False)(table.features).mean() == pytest.approx(0)
    thin = reader().read(tmp_path).features
    assert sparse.issparse(thin)
    with pytest.raises(InputError, match=r"data.scale=standard would fill a sparse table: .*data.reader.dense=true"):
        fit_scaling(thin, "standard", False, False)


def test_scaling_is_learnt_from_the_training_rows_of_the_fold_alone(tmp_path):
    head = "@relation r\n@attribute x real\n@attribute l {0,1}\n@data\n"
    values = np.random.default_rng(1).normal(size=20) ** 3
    write(tmp_path, head + "\n".join(f"{v!r},1" for v in values.tolist()) + "\n", ["l"])
    data = TableDataModule(
        reader(), str(tmp_path), Folds(5, False), 2, "standard", False, False, "refuse", 8, None, None, seed=3
    )
    data.setup("fit")
    train, test = data.rows()
    assert len(test) == 4 and not set(train) & set(test)
    assert data.learnt["offset"].item() == pytest.approx(values[train].mean())
    assert data.learnt["size"].item() == pytest.approx(values[train].std())


def test_a_random_part_of_the_rows_is_the_same_for_the_same_seed(tmp_path):
    rows = "\n".join(f"{number},{number % 2}" for number in range(50))
    write(tmp_path, f"@relation r\n@attribute x real\n@attribute l {{0,1}}\n@data\n{rows}\n", ["l"])
    parts = [reader(subset_rows=20, subset_seed=seed).read(tmp_path) for seed in (0, 0, 1)]
    numbers = [part.features[:, 0].tolist() for part in parts]
    assert numbers[0] == numbers[1] != numbers[2] and len(set(numbers[0])) == 20
    np.testing.assert_array_equal(parts[0].label[:, 0], parts[0].features[:, 0] % 2)
    with pytest.raises(InputError, match=r"subset_rows=51 must be from 1 to the 50 rows"):
        reader(subset_rows=51).read(tmp_path)


def test_nested_labels_are_read_with_their_children(tmp_path):
    path = tmp_path / "nested.xml"
    path.write_text(XML.format('<label name="a"><label name="b"/></label><label name="c"/>'))
    assert read_label_names(path) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": ["rain", "wnd"]}, r"Set.xml names 1 labels that are no attributes of .*: wnd \(did you mean wind"),
        ({"labels": ["rain", "rain"]}, "Set.xml names the labels rain more than once"),
        ({"labels": []}, r'Set.xml must hold <label name="…"/> for each label'),
        ({"labels": ["rain", "f1"]}, r"Set.arff, line 8: label f1 is '3' instead of 0 or 1"),
        ({"labels": ["rain", "wind", "sun", "f1", "f2"], "arff": SPARSE.replace(",1 3", "")}, "no feature is left"),
        ({"arff": SPARSE.replace("rain {0,1}", "rain {0,1,2}")}, "label rain has the word 2 in its domain"),
        ({"arff": SPARSE.replace("{0 1,1 3}", "{0 ?}")}, r"Set.arff, line 8: label rain is '\?' instead of 0 or 1"),
        ({"arff": SPARSE.replace("{2 0,3 1}", "{1 ?}")}, r"Set.arff, line 9: f1 is unknown \(\?\): complete it"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, change, sentence):
    with pytest.raises(InputError, match=sentence):
        reader().read(write(tmp_path, **change))


@pytest.mark.parametrize(("suffix", "what"), [("arff", "the rows"), ("xml", "the names of the labels")])
def test_a_missing_file_is_named_with_where_to_get_it(tmp_path, suffix, what):
    (write(tmp_path) / f"Set.{suffix}").unlink()
    with pytest.raises(InputError, match=f"lacks Set.{suffix}, {what}: it must be the folder .* KDIS"):
        reader().read(tmp_path)


def test_a_broken_label_file_is_named_with_its_line(tmp_path):
    (write(tmp_path) / "Set.xml").write_text("<labels>\n<label name='a'>\n")
    with pytest.raises(InputError, match=r"Set.xml, line \d: this is no XML"):
        reader().read(tmp_path)


def generated(**changes):
    settings = {
        "rows": 300, "words": 60, "labels": 6, "sets": 12, "most_labels": 4, "own_words": 6,
        "present": 0.8, "background": 0.03, "seed": 0,
    }  # fmt: skip
    return GeneratedLabelSets(**{**settings, **changes})


def test_generated_sets_are_read_back_from_real_files_as_they_were_drawn(tmp_path):
    generator = generated()
    generator.write(tmp_path / "demo")
    table = generator.read(tmp_path / "demo")
    features, labels = generator.draw()
    np.testing.assert_array_equal(table.features.toarray(), features)
    np.testing.assert_array_equal(table.label, labels)
    counts = labels.sum(axis=1)
    assert len(np.unique(labels, axis=0)) == 12 and set(counts) == {1, 2, 3, 4}
    assert 0.08 < features.mean() < 0.15  # 6 of 60 words at 0.8, the rest at 0.03
    stamps = [(tmp_path / "demo" / name).stat().st_mtime_ns for name in ("Generated.arff", "Generated.xml")]
    generator.write(tmp_path / "demo")  # there already
    assert stamps == [(tmp_path / "demo" / name).stat().st_mtime_ns for name in ("Generated.arff", "Generated.xml")]
    generated(seed=1).write(tmp_path / "demo")
    assert not np.array_equal(generator.read(tmp_path / "demo").label, labels)


def test_impossible_generated_sets_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"data.reader.sets=70 different label sets cannot be drawn"):
        generated(sets=70).write(tmp_path / "demo")
    with pytest.raises(InputError, match="most_labels=7 must be from 1 to labels=6"):
        generated(most_labels=7)


@pytest.mark.parametrize(
    ("name", "rows", "columns", "counts", "sets"),
    [
        ("GnegativeGO", 1392, 1717, [0, 1328, 64], 19),
        ("Birds", 645, 258 + 1 + 12, [294, 162, 101, 67, 17, 3, 1], 133),
        ("Emotions", 593, 72, [0, 178, 315, 100], 27),
        ("Langlog", 1460, 1004, [207, 908, 245, 79, 17, 4], 304),
    ],
)
def test_real_sets_have_their_published_counts(sample_data, name, rows, columns, counts, sets):
    table = reader(name=name).read(sample_data / "mulan_multilabel")
    assert table.features.shape == (rows, columns)
    assert np.bincount(table.label.sum(axis=1)).tolist() == counts
    assert len(np.unique(table.label, axis=0)) == sets
    if name == "Birds":
        assert reader(name=name, nominal="number").read(sample_data / "mulan_multilabel").features.shape == (rows, 260)
