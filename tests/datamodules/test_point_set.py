"""Official files of point sets, in each layout, and the sentence for each way they can be wrong."""

import bz2
import json

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits

from datamodules.generated_points import GeneratedPoints
from datamodules.point_files import (
    COIL20Reader,
    PenDigitsReader,
    SklearnDigitsReader,
    TableReader,
    USPSAllReader,
    USPSReader,
)
from datamodules.point_set import PointSetDataModule, scaled
from runs.errors import InputError


def pendigits_rows(n=40, seed=0):
    table = np.random.default_rng(seed).integers(0, 101, size=(n, 17))
    table[:, 16] = np.arange(n) % 10
    return table


def write_pendigits(folder, table, name="pendigits.tra"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(",".join(f"{v:3d}" for v in row) + "\n" for row in table))
    return folder


def datamodule(reader, root, num_classes=10, scale="none"):
    return PointSetDataModule(reader, None if root is None else str(root), num_classes, scale, eval_batch_size=16)


def ready(reader, root, **settings):
    module = datamodule(reader, root, **settings)
    module.setup("fit")
    return module


# --- PenDigits

UCI = "UCI Machine Learning Repository, Pen-Based Recognition of Handwritten Digits"


def test_pendigits_is_the_training_part_alone(tmp_path):
    table = pendigits_rows()
    write_pendigits(tmp_path, table)
    write_pendigits(tmp_path, pendigits_rows(25, seed=1), name="pendigits.tes")
    module = ready(PenDigitsReader(), tmp_path)
    assert np.array_equal(module.points(), table[:, :16].astype(float))
    assert np.array_equal(module.read.labels, table[:, 16])
    assert module.class_names == list("0123456789")


def test_the_official_pendigits_have_7494_points(sample_data):
    module = ready(PenDigitsReader(), sample_data / "pendigits")
    assert module.points().shape == (7494, 16)
    assert np.bincount(module.read.labels).tolist() == [780, 779, 780, 719, 780, 720, 720, 778, 719, 719]


def test_what_is_missing_is_named_with_its_place(tmp_path):
    with pytest.raises(InputError, match=rf"pendigits\.tra is missing: put the training part, from {UCI} there"):
        ready(PenDigitsReader(), tmp_path)
    with pytest.raises(InputError, match=f"nowhere is no folder: give the one that holds pendigits.tra, from {UCI}"):
        ready(PenDigitsReader(), "nowhere")
    with pytest.raises(InputError, match="None is no folder"):
        ready(PenDigitsReader(), None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda line: line.rsplit(",", 1)[0], "line 3: 16 columns instead of 17"),
        (lambda line: line.rsplit(",", 1)[0] + ",2.5", r"line 3: label 2\.5 is not a digit 0 to 9"),
        (lambda line: line.rsplit(",", 1)[0] + ",11", "line 3: label 11 is not a digit 0 to 9"),
        (lambda line: line.replace(",", ",x", 1), "line 3: '.*' is not a row of 17 numbers"),
        (lambda line: "nan" + line[3:], r"1 points have values that are NaN or infinite \(point 3, counted from 1\)"),
        (lambda line: "inf" + line[3:], "NaN or infinite"),
    ],
)
def test_a_broken_line_is_named(tmp_path, change, sentence):
    write_pendigits(tmp_path, pendigits_rows())
    lines = (tmp_path / "pendigits.tra").read_text().splitlines()
    lines[2] = change(lines[2])
    (tmp_path / "pendigits.tra").write_text("\n".join(lines))
    with pytest.raises(InputError, match=sentence):
        ready(PenDigitsReader(), tmp_path)


def test_an_empty_file_and_absent_or_surplus_classes_are_refused(tmp_path):
    write_pendigits(tmp_path, pendigits_rows(0))
    with pytest.raises(InputError, match="no points in it"):
        ready(PenDigitsReader(), tmp_path)
    write_pendigits(tmp_path, pendigits_rows(8))
    with pytest.raises(InputError, match=r"no point is of class 8, 9 of data\.num_classes=10"):
        ready(PenDigitsReader(), tmp_path)
    write_pendigits(tmp_path, pendigits_rows())
    with pytest.raises(InputError, match=r"10 classes but data\.num_classes=7: set data\.num_classes=10"):
        ready(PenDigitsReader(), tmp_path, num_classes=7)


# --- USPS


def usps(n=30):
    generator = np.random.default_rng(0)
    return generator.uniform(-1, 1, (n, 256)).round(4), np.arange(n) % 10


def libsvm_text(features, labels):
    rows = [
        " ".join([str(c + 1), *(f"{i + 1}:{v!r}" for i, v in enumerate(row) if v)])
        for row, c in zip(features.tolist(), labels, strict=True)
    ]
    return "\n".join(rows) + "\n"


def write_libsvm(folder, features, labels, packed):
    for name, part in (("usps", slice(0, 20)), ("usps.t", slice(20, None))):
        text = libsvm_text(features[part], labels[part]).encode()
        if packed:
            (folder / f"{name}.bz2").write_bytes(bz2.compress(text))
        else:
            (folder / name).write_bytes(text)


def write_h5(folder, features, labels):
    with h5py.File(folder / "usps.h5", "w") as file:
        for name, part in (("train", slice(0, 20)), ("test", slice(20, None))):
            group = file.create_group(name)
            group["data"], group["target"] = features[part], labels[part]


@pytest.mark.parametrize("layout", ["mat", "libsvm", "libsvm.bz2", "h5"])
def test_each_layout_of_usps_gives_the_same_points(tmp_path, layout):
    features, labels = usps()
    if layout == "mat":
        savemat(tmp_path / "USPS.mat", {"fea": features, "gnd": (labels + 1)[:, None]})
    elif layout == "h5":
        write_h5(tmp_path, features, labels)
    else:
        write_libsvm(tmp_path, features, labels, packed=layout.endswith("bz2"))
    module = ready(USPSReader(), tmp_path)
    assert np.array_equal(module.points(), features)
    assert np.array_equal(module.read.labels, labels)


def test_usps_names_all_that_it_looks_for(tmp_path):
    with pytest.raises(InputError, match=r"no USPS in .*USPS\.mat .*usps\.h5.*usps\.t .*data=usps_all"):
        ready(USPSReader(), tmp_path)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("3 300:0.5", r"line 2: column 300 is not one of 1\.\.256"),
        ("12 1:0.5", r"line 2: label 12 is not a whole number 1\.\.10"),
        ("2.5 1:0.5", r"line 2: label 2\.5 is not a whole number"),
        ("3 1=0.5", r"line 2: '3 1=0\.5' is not LIBSVM's"),
    ],
)
def test_a_broken_line_of_libsvm_is_named(tmp_path, line, sentence):
    write_libsvm(tmp_path, *usps(), packed=False)
    lines = (tmp_path / "usps.t").read_text().splitlines()
    lines[1] = line
    (tmp_path / "usps.t").write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"usps\.t, {sentence}"):
        ready(USPSReader(), tmp_path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "usps.bz2").write_bytes(b"no archive")
    (tmp_path / "usps.t.bz2").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"usps\.bz2 cannot be unpacked"):
        ready(USPSReader(), tmp_path)
    with h5py.File(tmp_path / "usps.h5", "w") as file:
        file.create_group("train")
    with pytest.raises(InputError, match=r"is no usps\.h5: it must have train and test"):
        ready(USPSReader(), tmp_path)
    (tmp_path / "USPS.mat").write_bytes(b"no matrix")
    with pytest.raises(InputError, match="cannot be read as a MATLAB 5 file"):
        ready(USPSReader(), tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"data": np.zeros((3, 3))}, "has no fea, gnd: it holds data"),
        ({"fea": np.zeros((4, 100)), "gnd": np.ones((4, 1))}, r"fea has shape \(4, 100\) and gnd 4 values"),
        ({"fea": np.zeros((4, 256)), "gnd": np.ones((3, 1))}, "gnd 3 values"),
        (
            {"fea": np.zeros((2, 256)), "gnd": np.array([[1.0], [1.5]])},
            r"gnd of row 2 is 1\.5 instead of a whole number",
        ),
        (
            {"fea": np.zeros((2, 256)), "gnd": np.array([[0], [1]])},
            "gnd of row 1 is 0 instead of a whole number from 1",
        ),
    ],
)
def test_a_mat_file_of_another_shape_is_refused(tmp_path, content, sentence):
    savemat(tmp_path / "USPS.mat", content)
    with pytest.raises(InputError, match=sentence):
        ready(USPSReader(), tmp_path)


def test_the_other_usps_is_read_class_by_class(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, size=(256, 4, 10)).astype(np.uint8)
    savemat(tmp_path / "usps_all.mat", {"data": data})
    module = ready(USPSAllReader(), tmp_path)
    for point, pixels in enumerate(module.points()):
        assert np.array_equal(pixels, data[:, point % 4, point // 4])
        assert module.read.labels[point] == (point // 4 + 1) % 10
    savemat(tmp_path / "usps_all.mat", {"data": data[:100]})
    with pytest.raises(InputError, match=r"data has shape \(100, 4, 10\) instead of \(256, images, 10\)"):
        ready(USPSAllReader(), tmp_path)


def test_the_official_other_usps_has_11000_points(sample_data):
    module = ready(USPSAllReader(), sample_data / "usps")
    assert module.points().shape == (11000, 256)
    assert np.bincount(module.read.labels).tolist() == [1100] * 10


# --- COIL-20


def test_coil20_as_mat_and_as_pictures_reduced_by_area_give_the_same(tmp_path):
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, size=(40, 32, 32)).astype(np.uint8)
    folder = tmp_path / "coil-20-proc"
    folder.mkdir()
    for number, picture in enumerate(small):
        large = picture.repeat(4, axis=0).repeat(4, axis=1)
        Image.fromarray(large).save(folder / f"obj{number // 2 + 1}__{number % 2}.png")
    labels = np.arange(40) // 2
    pictures = ready(COIL20Reader(), tmp_path, num_classes=20)
    assert np.array_equal(pictures.points(), small.reshape(40, 1024))
    assert np.array_equal(pictures.read.labels, labels)
    assert np.array_equal(ready(COIL20Reader(), folder, num_classes=20).points(), pictures.points())
    savemat(tmp_path / "COIL20.mat", {"fea": small.reshape(40, 1024), "gnd": (labels + 1)[:, None]})
    matrix = ready(COIL20Reader(), tmp_path, num_classes=20)
    assert np.array_equal(matrix.points(), pictures.points())
    assert np.array_equal(matrix.read.labels, labels)


def test_the_area_average_is_the_mean_of_its_pixels(tmp_path):
    large = np.random.default_rng(0).integers(0, 256, size=(128, 128)).astype(np.uint8)
    for number in range(1, 21):
        Image.fromarray(large).save(tmp_path / f"obj{number}__0.png")
    pixels = ready(COIL20Reader(), tmp_path, num_classes=20).points()[0].reshape(32, 32)
    assert pixels[5, 9] == large[20:24, 36:40].mean()


def test_bad_pictures_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no COIL-20 in .*COIL20\.mat .*coil-20-proc .*Columbia University COIL-20"):
        ready(COIL20Reader(), tmp_path)
    Image.new("L", (100, 128)).save(tmp_path / "obj1__0.png")
    with pytest.raises(InputError, match=r"obj1__0\.png has 100 x 128 pixels"):
        ready(COIL20Reader(), tmp_path)
    (tmp_path / "obj1__0.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"obj1__0\.png cannot be read as a picture"):
        ready(COIL20Reader(), tmp_path)
    Image.new("L", (128, 128)).save(tmp_path / "obj21__0.png")
    with pytest.raises(InputError, match=r"obj21__0\.png name objects beyond 1\.\.20"):
        ready(COIL20Reader(), tmp_path)


# --- without files, and one's own


def test_the_digits_of_scikit_learn_need_no_file():
    module = ready(SklearnDigitsReader(), None)
    assert np.array_equal(module.points(), load_digits().data)


def test_a_table_of_ones_own(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("a,kind,b\n1.5,10,2\n-3,9,4e1\n\n0,10,0\n")
    module = ready(TableReader("kind"), path, num_classes=2)
    assert module.points().tolist() == [[1.5, 2], [-3, 40], [0, 0]]
    assert module.class_names == ["9", "10"] and module.read.labels.tolist() == [1, 0, 1]
    assert ready(TableReader(None), path, num_classes=2).points().shape == (3, 3)
    assert ready(TableReader(None), path, num_classes=2).read.labels is None


def test_an_array_of_ones_own(tmp_path):
    path = tmp_path / "mine.npy"
    np.save(path, np.arange(6, dtype=np.int16).reshape(3, 2))
    assert ready(TableReader(None), path).points().tolist() == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(InputError, match=r"mine\.npy has no column names, so no labels"):
        ready(TableReader("kind"), path)
    np.save(path, np.zeros(3))
    with pytest.raises(InputError, match=r"holds float64 of shape \(3,\) instead of numbers"):
        ready(TableReader(None), path)
    path.write_bytes(b"no array")
    with pytest.raises(InputError, match="is no array of numbers"):
        ready(TableReader(None), path)


@pytest.mark.parametrize(
    ("text", "label", "sentence"),
    [
        ("a,b\n1,2\n3\n", None, "line 3: 1 cells instead of the 2"),
        ("a,b\n1,2\n3,red\n", None, r"line 3: b is 'red' instead of a number \(a column of classes is named by"),
        ("a,b\n1,2\n", "kind", "has no column 'kind' .*it has a, b"),
        ("a,b\n1,2\nnan,2\n", None, r"line 3: a is 'nan' instead of a number"),
        ("a,b\n", None, "no points in it"),
        ("1,2\n3,4\n", None, "its first line holds numbers: put a line of column names"),
        ("a,kind\n1,x\n2,y\n3,z\n", "kind", "there are 3 classes but"),
    ],
)
def test_a_wrong_table_is_answered_with_its_line(tmp_path, text, label, sentence):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        ready(TableReader(label), path, num_classes=2)


def test_the_number_of_clusters_must_be_given(tmp_path):
    with pytest.raises(InputError, match=r"data\.num_classes=0: give the number of clusters"):
        datamodule(TableReader(None), tmp_path, num_classes=0)


def test_a_path_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no file: give a table"):
        ready(TableReader(None), tmp_path)
    (tmp_path / "mine.xls").write_text("")
    with pytest.raises(InputError, match=r"is neither \.csv nor \.npy"):
        ready(TableReader(None), tmp_path / "mine.xls")


def test_duplicate_points_are_allowed(tmp_path):
    write_pendigits(tmp_path, np.repeat(pendigits_rows(10), 4, axis=0))
    assert ready(PenDigitsReader(), tmp_path).points().shape == (40, 16)


# --- generated


def generated(shape, classes=2, **changed):
    settings = {"n": 200, "noise": 0.02, "bridges": 0.1, "gap": 1.0, "seed": 0, **changed}
    return GeneratedPoints(shape=shape, classes=classes, **settings)


@pytest.mark.parametrize(("shape", "classes"), [("two_moons", 2), ("two_circles", 2), ("chains", 5)])
def test_generated_points_are_a_file_that_reads_back_the_same(tmp_path, shape, classes):
    generator = generated(shape, classes)
    module = ready(generator, tmp_path, num_classes=classes)
    points, labels = generator.points()
    assert np.array_equal(module.points(), points)
    assert np.array_equal(module.read.labels, labels)
    assert np.bincount(labels).tolist() == [200 // classes] * classes
    before = (tmp_path / "points.csv").stat().st_mtime_ns
    ready(generator, tmp_path, num_classes=classes)
    assert (tmp_path / "points.csv").stat().st_mtime_ns == before
    other = ready(generated(shape, classes, seed=1), tmp_path, num_classes=classes)
    assert not np.array_equal(other.points(), points)
    assert json.loads((tmp_path / "points.json").read_text())["seed"] == 1


def test_bridges_lie_between_chains_on_the_side_of_their_own():
    points, labels = generated("chains", 4, n=2000, noise=0.0, bridges=0.2).points()
    away = points[:, 1] - 0.3 * np.sin(3 * points[:, 0]) - labels
    bridge = np.abs(away) > 1e-9
    assert bridge.mean() == pytest.approx(0.2, abs=0.03)
    assert np.abs(away).max() <= 0.5
    assert (away[bridge & (labels == 0)] > 0).all() and (away[bridge & (labels == 3)] < 0).all()


def test_generated_points_need_a_folder():
    with pytest.raises(InputError, match=r"data\.root is not set"):
        ready(generated("two_moons"), None)


# --- scaling, batches, identity


def test_scaling_is_that_of_its_definition_and_leaves_zeros():
    features = np.random.default_rng(0).normal(3, 2, size=(50, 4))
    features[:, 2], features[7] = 5.0, 0.0
    features[7, 2] = 5.0
    assert scaled(features, "none") is features
    np.testing.assert_allclose(np.linalg.norm(scaled(features, "unit_norm"), axis=1), 1)
    assert not scaled(np.zeros((2, 3)), "unit_norm").any()
    standard = scaled(features, "standard")
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(standard.std(axis=0), [1, 1, 0, 1])


def test_a_checkpoint_of_other_points_is_refused_and_prediction_needs_none(tmp_path):
    write_pendigits(tmp_path / "a", pendigits_rows())
    write_pendigits(tmp_path / "b", pendigits_rows(seed=1))
    state = ready(PenDigitsReader(), tmp_path / "a").state_dict()
    ready(PenDigitsReader(), tmp_path / "a").load_state_dict(state)
    with pytest.raises(InputError, match=r"the checkpoint holds clusters of 40 points, and .* are 40 other ones"):
        ready(PenDigitsReader(), tmp_path / "b").load_state_dict(state)
    with pytest.raises(InputError, match=r"data\.scale=standard"):
        ready(PenDigitsReader(), tmp_path / "a", scale="standard").load_state_dict(state)
    alone = datamodule(PenDigitsReader(), "nowhere")
    alone.setup("predict")
    alone.load_state_dict(state)
    assert len(alone._indices()) == 40 and alone._indices()[3] == {"index": 3}
    other = datamodule(PenDigitsReader(), tmp_path / "b")
    other.setup("predict")  # points that are there must be those of the checkpoint
    with pytest.raises(InputError, match="train on these"):
        other.load_state_dict(state)
