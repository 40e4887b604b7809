"""What a module predicts reaches the disk unchanged: a row for each sample, pictures and maps as files."""

import csv
from types import SimpleNamespace

import numpy as np
import tifffile
from PIL import Image

from callbacks.prediction_table import PredictionTable


def write(tmp_path, *batches):
    table = PredictionTable(str(tmp_path / "predictions.csv"))
    trainer = SimpleNamespace(global_rank=0)
    for number, rows in enumerate(batches):
        table.on_predict_batch_end(trainer, None, rows, None, number)
    table.on_predict_end(trainer, None)
    with (tmp_path / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def palette_picture(label: int) -> Image.Image:
    picture = Image.fromarray(np.full((3, 5), label, dtype=np.uint8), mode="P")
    picture.putpalette([channel for colour in range(256) for channel in (colour, 0, 255 - colour)])
    return picture


def test_a_row_of_plain_values_is_a_row_of_the_table(tmp_path):
    rows = write(tmp_path, [{"name": "a.avi", "label": 3}], [{"name": "b.avi", "label": 4}])
    assert rows == [{"name": "a.avi", "label": "3"}, {"name": "b.avi", "label": "4"}]


def test_a_palette_picture_keeps_its_labels_and_the_folders_of_its_name(tmp_path):
    (row,) = write(tmp_path, [{"name": "town/street.jpg", "mask": palette_picture(17)}])
    assert row["mask"] == "predictions/mask/town/street.png"
    with Image.open(tmp_path / row["mask"]) as picture:
        assert picture.mode == "P"
        assert (np.asarray(picture) == 17).all()


def test_a_map_is_a_32_bit_tiff_with_its_holes(tmp_path):
    disparity = np.array([[1.25, np.nan], [-3.5, 1e6]], dtype=np.float32)
    (row,) = write(tmp_path, [{"name": "pair.png", "disparity": disparity}])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / row["disparity"]), disparity)


def test_two_files_of_one_stem_do_not_overwrite_each_other(tmp_path):
    rows = write(
        tmp_path, [{"name": "a.jpg", "mask": palette_picture(1)}, {"name": "a.png", "mask": palette_picture(2)}]
    )
    values = []
    for row in rows:
        with Image.open(tmp_path / row["mask"]) as picture:
            values.append(np.asarray(picture)[0, 0])
    assert values == [1, 2]
