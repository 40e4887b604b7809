"""Fashion-MNIST in its official IDX files, as a table of pixels; MNIST has the same files."""

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.table_files import Table
from runs.errors import InputError

_UNSIGNED_BYTE = 0x08


@dataclass(frozen=True)
class FashionMNISTReader:
    """60,000 training and 10,000 test images of 28 x 28 grey pixels, as 784 columns of 0..1.

    `data.root` holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`, each packed (`.gz`) or not.

    Attributes:
        class_names: in the order of the labels.
    """

    class_names: list[str]

    instructions = (
        "it must be the folder with the four IDX files of Fashion-MNIST (train-images-idx3-ubyte.gz and so on), which "
        "github.com/zalandoresearch/fashion-mnist has"
    )

    def read(self, root: Path) -> Table:
        """Reads all four files.

        Raises:
            InputError: one is missing or broken, images and labels do not belong together, or a label has no name.
        """
        pixels, labels, parts = [], [], []
        for part, prefix in (("train", "train"), ("test", "t10k")):
            images, label = (
                self._file(root, f"{prefix}-images-idx3-ubyte", 3),
                self._file(root, f"{prefix}-labels-idx1-ubyte", 1),
            )
            if len(images) != len(label):
                raise InputError(
                    f"{root}: {len(images)} {prefix} images and {len(label)} labels do not belong together"
                )
            if label.max(initial=0) >= len(self.class_names):
                raise InputError(
                    f"{root}: a {prefix} label is {label.max()}, data.reader.class_names has {len(self.class_names)}"
                )
            pixels.append(images.reshape(len(images), -1))
            labels.append(label)
            parts += [part] * len(label)
        if pixels[0].shape[1] != pixels[1].shape[1]:
            raise InputError(
                f"{root}: training images have {pixels[0].shape[1]} pixels, test ones {pixels[1].shape[1]}"
            )
        features = np.concatenate(pixels) / 255.0
        columns = [f"pixel{place}" for place in range(1, features.shape[1] + 1)]
        return Table(
            features, columns, str(root), label=np.concatenate(labels).astype(np.int64),
            class_names=list(self.class_names), parts=np.array(parts),
        )  # fmt: skip

    def _file(self, root: Path, name: str, axes: int) -> NDArray[np.uint8]:
        for path in (root / f"{name}.gz", root / name):
            if path.is_file():
                return read_idx(path, axes)
        raise InputError(f"{root} holds neither {name}.gz nor {name}: {self.instructions}")


def read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """An IDX file of bytes, packed by gzip or not.

    Raises:
        InputError: it cannot be unpacked, is no IDX file of bytes, has other axes, or is cut off.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be unpacked: {error}") from error
    begin = 4 + 4 * axes
    if len(content) < begin or content[:4] != bytes([0, 0, _UNSIGNED_BYTE, axes]):
        raise InputError(f"{path} is no IDX file of bytes with {axes} axes")
    shape = struct.unpack(f">{axes}I", content[4:begin])
    if len(content) - begin != int(np.prod(shape)):
        raise InputError(f"{path} holds {len(content) - begin} values instead of {int(np.prod(shape))}: it was cut off")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)
