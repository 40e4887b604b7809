"""Generated outliers: real files, equal for equal seeds, what their docstrings say; a class made rare, files joined."""

import numpy as np
import pytest

from datamodules.generated_outliers import OUTLIER, GeneratedOutliers
from datamodules.table_files import CSVReader
from datamodules.table_parts import JoinedFiles, RareClass
from datamodules.uci import TextSet
from runs.errors import InputError


@pytest.mark.parametrize(("shape", "n"), [("bridge", 1350), ("density", 800)])
def test_a_set_is_a_csv_file_and_equal_for_equal_seeds(tmp_path, shape, n):
    reader = GeneratedOutliers(shape, n_noise=21, seed=3)
    reader.write(tmp_path / "set")
    assert (tmp_path / "set" / "points.csv").read_text().startswith("x,y,kind\n")
    table = reader.read(tmp_path / "set")
    assert len(table) == n + 21 and table.columns == ["x", "y"]
    drawn = reader.draw()
    assert np.array_equal(table.features, np.concatenate(list(drawn.values())))
    assert (table.label == table.class_names.index(OUTLIER)).sum() == 21
    other = GeneratedOutliers(shape, n_noise=21, seed=4).draw()
    assert not any(np.array_equal(drawn[name], other[name]) for name in drawn)


def test_noise_of_the_bridge_keeps_away_from_all_else():
    drawn = GeneratedOutliers("bridge", n_noise=40, seed=0).draw()
    inliers = np.concatenate([points for name, points in drawn.items() if name != OUTLIER])
    apart = np.linalg.norm(drawn[OUTLIER][:, None] - inliers[None], axis=2)
    assert apart.min() >= 1
    assert abs(np.median(np.linalg.norm(drawn["arc"], axis=1)) - 10) < 0.1
    assert np.allclose([drawn[name].mean(axis=0) for name in ("left", "middle", "right")], [(-4, 1), (0, 3), (4, 1)],
                       atol=0.2)  # fmt: skip


def test_rings_of_the_density_set_lie_at_their_radii():
    drawn = GeneratedOutliers("density", n_noise=50, seed=0).draw()
    dense, loose = drawn[OUTLIER][:25], drawn[OUTLIER][25:]
    radius = np.linalg.norm(dense, axis=1)
    assert radius.min() >= 0.9 and radius.max() <= 1.8
    radius = np.linalg.norm(loose - np.array([8.0, 0.0]), axis=1)
    assert radius.min() >= 6 and radius.max() <= 9
    assert np.allclose([drawn["dense"].std(), (drawn["loose"] - [8, 0]).std()], [0.15, 1.5], rtol=0.1)


@pytest.mark.parametrize(
    ("n_noise", "sentence"), [(-1, "must be 0 or more"), (3000, "find no place beside the others: ask for fewer")]
)
def test_impossible_noise_is_refused(n_noise, sentence, monkeypatch):
    monkeypatch.setattr("datamodules.generated_outliers.TRIES", 1)
    with pytest.raises(InputError, match=sentence):
        GeneratedOutliers("bridge", n_noise=n_noise, seed=0).draw()


def csv_of(path, rows):
    path.write_text("\n".join(["a,kind", *rows]) + "\n")
    return CSVReader(
        label="kind", labels=[], target=None, identifier=None, left_out=[], separator="comma", missing_label="refuse"
    )


def test_a_class_is_made_rare(tmp_path):
    rows = [f"{i},{'good' if i % 3 else 'bad'}" for i in range(30)]
    reader = csv_of(tmp_path / "t.csv", rows)
    table = RareClass(reader, "bad", rows=4, seed=1).read(tmp_path / "t.csv")
    kept = table.features[:, 0][table.label == table.class_names.index("bad")]
    assert len(kept) == 4 and (kept % 3 == 0).all() and len(table) == 24
    another = RareClass(reader, "bad", rows=4, seed=2).read(tmp_path / "t.csv")
    assert not np.array_equal(table.features, another.features)
    with pytest.raises(InputError, match=r"no class 'bat' \(data\.reader\.rare\): did you mean bad"):
        RareClass(reader, "bat", rows=4, seed=1).read(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"data\.reader\.rows=11 must be from 1 to 10"):
        RareClass(reader, "bad", rows=11, seed=1).read(tmp_path / "t.csv")


def test_the_parts_of_a_set_are_joined(tmp_path):
    (tmp_path / "d.tra").write_text("1,2,x\n3,4,y\n")
    (tmp_path / "d.tes").write_text("5,6,x\n7,8,y\n")
    parts = [TextSet(f"d.{part}", "comma", ["a", "b", "class"], "class", [], None) for part in ("tra", "tes")]
    table = JoinedFiles(parts).read(tmp_path)
    assert table.features.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]] and table.label.tolist() == [0, 1, 0, 1]
    (tmp_path / "d.tes").write_text("5,6,x\n7,8,z\n")
    with pytest.raises(InputError, match="has other class names than"):
        JoinedFiles(parts).read(tmp_path)
