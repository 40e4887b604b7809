"""Stereo files: formats to the last bit, four official layouts, and what is wrong with them in words."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, UnidentifiedImageError

from datamodules.stereo_files import (
    DFC2019,
    Kitti2015,
    Middlebury2014,
    S2PTiles,
    read_disparity_png,
    read_grey,
    read_pfm,
    write_pfm,
)
from runs.errors import InputError


def grey(seed: int = 0, height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


def save(path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, values)
    else:
        Image.fromarray(values).save(path)


# --- PFM


def test_pfm_comes_back_to_the_last_bit_inf_included(tmp_path):
    values = np.random.default_rng(0).normal(0, 100, (4, 6)).astype(np.float32)
    values[1, 2] = np.inf
    write_pfm(tmp_path / "a.pfm", values)
    assert np.array_equal(read_pfm(tmp_path / "a.pfm"), values)


def test_pfm_rows_run_from_the_bottom_up_in_either_byte_order(tmp_path):
    rows = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]  # top row first
    for scale, order in (("-1.0", "<f4"), ("1", ">f4")):
        content = b"".join(np.array(row, order).tobytes() for row in reversed(rows))
        (tmp_path / "a.pfm").write_bytes(f"Pf\n3 2\n{scale}\n".encode() + content)
        assert read_pfm(tmp_path / "a.pfm").tolist() == rows


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"PF\n3 2\n-1\n" + bytes(24), "begins with b'PF': a grey PFM file begins with 'Pf'"),
        (b"Pf\n3\n-1\n" + bytes(24), "its header must give width, height and scale"),
        (b"Pf\n3 2\nsmall\n" + bytes(24), "its header must give width, height and scale"),
        (b"Pf\n3 2\n-1\n" + bytes(20), "holds 20 bytes of values where 3x2 pixels need 24"),
        (b"Pf\n3 2\n-1\n" + bytes(28), "holds 28 bytes of values where 3x2 pixels need 24"),
    ],
)
def test_a_broken_pfm_is_named_with_what_is_wrong(tmp_path, content, sentence):
    (tmp_path / "a.pfm").write_bytes(content)
    with pytest.raises(InputError, match=f"a.pfm.* {sentence}|a.pfm: {sentence}"):
        read_pfm(tmp_path / "a.pfm")


# --- images


def test_kitti_disparities_are_16_bits_over_256_and_0_is_unknown(tmp_path):
    values = np.array([[0, 256, 257], [65535, 1, 0]], dtype=np.uint16)
    save(tmp_path / "d.png", values)
    read = read_disparity_png(tmp_path / "d.png")
    assert np.isnan(read[0, 0]) and np.isnan(read[1, 2])
    assert read[0, 1] == 1.0 and read[0, 2] == 257 / 256 and read[1, 0] == 65535 / 256
    with pytest.raises(InputError, match=r"e\.png has 8 bits a pixel: KITTI's disparities are 16-bit"):
        save(tmp_path / "e.png", (values // 256).astype(np.uint8))
        read_disparity_png(tmp_path / "e.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_compressed_tiff_is_read_without_a_codec_of_tifffiles(tmp_path, dtype):
    values = (np.random.default_rng(0).random((40, 50)) * 200).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.tif", compression="tiff_lzw")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].compression == tifffile.COMPRESSION.LZW
    assert np.array_equal(read_grey(tmp_path / "a.tif"), values.astype(np.float32))
    colour = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "c.tif", compression="tiff_lzw")
    np.testing.assert_allclose(read_grey(tmp_path / "c.tif"), colour @ [0.299, 0.587, 0.114], rtol=1e-5)


@pytest.mark.parametrize("found", [None, np.zeros((4, 5, 3), np.uint8)])  # Pillow fails, or drops bits
def test_a_tiff_that_nothing_reads_in_full_is_refused(tmp_path, monkeypatch, found):
    save(tmp_path / "a.tif", np.zeros((4, 5, 3), np.uint16))

    def no_codec(self):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    def pillow(path):
        if found is None:
            raise UnidentifiedImageError("no")
        return Image.fromarray(found)

    monkeypatch.setattr(tifffile.TiffFile, "asarray", no_codec)
    monkeypatch.setattr(Image, "open", pillow)
    sentence = r"a\.tif cannot be read .*LZW.* requires the 'imagecodecs' package: install it, or save .* without"
    with pytest.raises(InputError, match=sentence):
        read_grey(tmp_path / "a.tif")


@pytest.mark.parametrize("bands", [3, 4])
def test_bands_that_lie_one_after_the_other_are_one_picture(tmp_path, bands):
    values = np.random.default_rng(0).integers(0, 65536, (bands, 40, 50)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", planarconfig="separate")
    expected = 0.299 * values[0] + 0.587 * values[1] + 0.114 * values[2]
    np.testing.assert_allclose(read_grey(tmp_path / "a.tif"), expected, rtol=1e-5)


def write_png_of_16_bits(path, values: np.ndarray) -> None:
    """By the letter of the format; Pillow writes none in colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, bands = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_a_png_of_16_bits_a_channel_keeps_them(tmp_path, bands):
    values = np.random.default_rng(0).integers(0, 65536, (4, 5, bands)).astype(np.uint16)
    write_png_of_16_bits(tmp_path / "a.png", values)
    expected = values[..., 0] if bands == 2 else values[..., :3] @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read_grey(tmp_path / "a.png"), expected, rtol=1e-5)


def test_colour_becomes_grey_and_depth_is_kept(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    save(tmp_path / "c.png", colour)
    expected = 0.299 * colour[..., 0] + 0.587 * colour[..., 1] + 0.114 * colour[..., 2]
    np.testing.assert_allclose(read_grey(tmp_path / "c.png"), expected, rtol=1e-5)
    deep = np.array([[1, 40_000], [65_535, 7]], dtype=np.uint16)
    for name in ("d.tif", "d.png"):
        save(tmp_path / name, deep)
        assert read_grey(tmp_path / name).tolist() == deep.tolist()
    save(tmp_path / "f.tif", np.array([[0.5, np.nan]], dtype=np.float32))
    assert np.isnan(read_grey(tmp_path / "f.tif")[0, 1])


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png cannot be read as an image"):
        read_grey(tmp_path / "a.png")
    save(tmp_path / "b.tif", np.zeros((7, 5, 5), dtype=np.float32))
    with pytest.raises(InputError, match=r"b\.tif has the shape 7x5x5: give a grey or a colour image"):
        read_grey(tmp_path / "b.tif")


# --- layouts


def test_middlebury_is_read_in_its_official_layout(tmp_path):
    scene = tmp_path / "trainingH" / "Piano"
    for name in ("im0", "im1"):
        save(scene / f"{name}.png", grey())
    truth = np.full((5, 7), 3.5, dtype=np.float32)
    truth[0, 0] = np.inf
    write_pfm(scene / "disp0GT.pfm", truth)
    mask = np.full((5, 7), 255, dtype=np.uint8)
    mask[2, 3], mask[4, 4] = 128, 0
    save(scene / "mask0nocc.png", mask)
    (scene / "calib.txt").write_text(
        "cam0=[1 0 0]\ncam1=[1 0 0]\ndoffs=3\nbaseline=1\nwidth=7\nheight=5\nndisp=6\nvmin=1\n"
    )
    reader = Middlebury2014("H", visible_only=False)
    (files,) = reader.pairs(tmp_path)
    assert files.name == "Piano" and reader.extent(files) == (0, 5)  # six disparities
    assert np.isnan(reader.truth(files)).sum() == 1  # inf is no disparity
    assert np.isnan(Middlebury2014("H", visible_only=True).truth(files)).sum() == 3
    (scene / "mask0nocc.png").unlink()
    with pytest.raises(InputError, match=r"visible_only=true needs .*mask0nocc\.png"):
        Middlebury2014("H", visible_only=True).truth(files)
    (scene / "calib.txt").write_text("ndisp\n")
    with pytest.raises(InputError, match=r"calib\.txt has no line ndisp="):
        reader.extent(files)
    (scene / "disp0GT.pfm").unlink()
    assert reader.truth(reader.pairs(tmp_path)[0]) is None


def test_kitti_is_read_in_its_official_layout(tmp_path):
    for number in ("000000", "000001"):
        for folder in ("image_2", "image_3"):
            save(tmp_path / "training" / folder / f"{number}_10.png", grey())
            save(tmp_path / "training" / folder / f"{number}_11.png", grey())  # the next moment
        save(tmp_path / "training" / "disp_occ_0" / f"{number}_10.png", np.full((5, 7), 512, dtype=np.uint16))
        save(tmp_path / "training" / "disp_noc_0" / f"{number}_10.png", np.zeros((5, 7), dtype=np.uint16))
    reader = Kitti2015(visible_only=False)
    pairs = reader.pairs(tmp_path)
    assert [files.name for files in pairs] == ["000000_10", "000001_10"]
    assert (reader.truth(pairs[1]) == 2).all() and reader.extent(pairs[0]) is None
    visible = Kitti2015(visible_only=True)
    assert np.isnan(visible.truth(visible.pairs(tmp_path)[0])).all()


def test_dfc2019_is_read_in_its_official_layout(tmp_path):
    stem = "JAX_004_009_007"
    for side in ("LEFT", "RIGHT"):
        save(tmp_path / "Track2-RGB" / f"{stem}_{side}_RGB.tif", np.stack([grey()] * 3, axis=-1))
    truth = np.full((5, 7), -12.5, dtype=np.float32)
    truth[0, :2] = -999
    save(tmp_path / "Track2-Truth" / f"{stem}_LEFT_DSP.tif", truth)
    reader = DFC2019(visible_only=False)
    (files,) = reader.pairs(tmp_path)
    read = reader.truth(files)
    assert files.name == stem and np.isnan(read).sum() == 2 and np.nanmax(read) == -12.5
    assert read_grey(files.left).shape == (5, 7)


def test_s2p_tiles_are_read_with_their_range(tmp_path):
    for side in ("im_left", "im_right"):
        save(tmp_path / side / "tile_1.tif", grey().astype(np.uint16))
    (tmp_path / "disp_minmax").mkdir()
    (tmp_path / "disp_minmax" / "tile_1.txt").write_text("-3\n12.5\n")
    reader = S2PTiles(visible_only=False)
    (files,) = reader.pairs(tmp_path)
    assert files.name == "tile_1.tif" and reader.extent(files) == (-3, 12.5) and reader.truth(files) is None
    for content, sentence in (("7", "must hold two numbers"), ("a\nb", "must hold two numbers"), ("5\n1", "5 to 1")):
        (tmp_path / "disp_minmax" / "tile_1.txt").write_text(content)
        with pytest.raises(InputError, match=sentence):
            reader.extent(files)
    (tmp_path / "disp_minmax" / "tile_1.txt").unlink()
    assert reader.extent(reader.pairs(tmp_path)[0]) is None


@pytest.mark.parametrize("gone", ["im_left/tile_2.png", "im_right/tile_2.png"])
def test_a_missing_partner_is_named(tmp_path, gone):
    for side in ("im_left", "im_right"):
        for number in range(3):
            save(tmp_path / side / f"tile_{number}.png", grey())
    (tmp_path / gone).unlink()
    with pytest.raises(InputError, match=rf"needs its partner of the other camera: .*{gone} is missing"):
        S2PTiles(visible_only=False).pairs(tmp_path)


@pytest.mark.parametrize("reader", [Middlebury2014("Q", False), Kitti2015(False), DFC2019(False), S2PTiles(False)])
def test_an_empty_folder_is_answered_with_what_belongs_there(tmp_path, reader):
    with pytest.raises(InputError, match=rf"data\.root={tmp_path} holds no stereo pair: (get|set) .*"):
        reader.pairs(tmp_path)


def test_the_sample_of_middlebury_is_read_in_its_own_convention(sample_data):
    reader = Middlebury2014("Q", False)
    (files,) = reader.pairs(sample_data / "middlebury2014")
    left, right, truth = read_grey(files.left), read_grey(files.right), reader.truth(files)
    assert left.shape == truth.shape == (500, 741) and reader.extent(files) == (0, 69)
    assert np.isnan(truth).mean() == pytest.approx(0.073, abs=1e-3)
    assert 7.1 < np.nanmin(truth) < 7.3 and 59.8 < np.nanmax(truth) < 60
    rows, columns = np.nonzero(np.isfinite(truth))
    target = np.rint(columns - truth[rows, columns]).astype(int)
    inside = target >= 0
    error = np.abs(left[rows, columns] - right[rows, target.clip(0)])[inside]
    upside_down = np.abs(left[499 - rows, columns] - right[499 - rows, target.clip(0)])[inside]
    assert np.median(error) < 0.5 * np.median(upside_down)
