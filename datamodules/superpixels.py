"""Guide superpixels of one photograph: from files that others made, or made here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from components.metrics.regions import resize_labels
from components.ucm import ucm_regions
from datamodules.bsds_files import BSDSImage, read_superpixels, read_ucm2
from runs.errors import InputError, first_few

Source = Literal["mat", "ucm", "felzenszwalb", "slic"]
OTHER_SOURCES = "set data.superpixels.source to auto, felzenszwalb or slic, which need no files"


@dataclass(frozen=True)
class Felzenszwalb:
    """Felzenszwalb and Huttenlocher 2004, as scikit-image has it.

    Attributes:
        scale: larger gives larger regions.
        sigma: of the smoothing before, pixels.
        min_size: of a region, pixels.

    Raises:
        InputError: a value that makes no sense.
    """

    scale: float
    sigma: float
    min_size: int

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.sigma < 0 or self.min_size < 1:
            raise InputError(
                f"data.superpixels.felzenszwalb: scale={self.scale} must be above 0, sigma={self.sigma} 0 or more and "
                f"min_size={self.min_size} 1 or more"
            )

    def regions(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Regions (H, W) of an RGB image (H, W, 3)."""
        from skimage.segmentation import felzenszwalb

        return felzenszwalb(pixels, scale=self.scale, sigma=self.sigma, min_size=self.min_size).astype(np.int64)


@dataclass(frozen=True)
class SLIC:
    """SLIC (Achanta et al. 2012), as scikit-image has it.

    Attributes:
        segments: about how many.
        compactness: weight of place against colour.

    Raises:
        InputError: a value that makes no sense.
    """

    segments: int
    compactness: float

    def __post_init__(self) -> None:
        if self.segments < 2 or self.compactness <= 0:
            raise InputError(
                f"data.superpixels.slic: segments={self.segments} must be 2 or more and "
                f"compactness={self.compactness} above 0"
            )

    def regions(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Regions (H, W) of an RGB image (H, W, 3)."""
        from skimage.segmentation import slic

        labels = slic(pixels, n_segments=self.segments, compactness=self.compactness, start_label=0)
        return labels.astype(np.int64)


class Superpixels:
    """The guide of each photograph, by one source or by the first that there is.

    Files are made for the whole photograph: at another scale each pixel takes the superpixel under its
    centre. Felzenszwalb and SLIC see the pixels as they are segmented.

    Args:
        source: ``mat`` (``<folder>/<id>.mat`` with ``seg_lab``), ``ucm`` (regions of the photograph's ucm2
            file), ``felzenszwalb``, ``slic``, or ``auto``: mat where there is the file, else ucm where there is
            the file, else felzenszwalb.
        folder: of the mat files, below the folder of the data or absolute.
        ucm_threshold: regions are what no stronger boundary parts.
        felzenszwalb: settings.
        slic: settings.
    """

    def __init__(
        self,
        source: Literal["auto", "mat", "ucm", "felzenszwalb", "slic"],
        folder: str,
        ucm_threshold: float,
        felzenszwalb: Felzenszwalb,
        slic: SLIC,
    ) -> None:
        if not 0 <= ucm_threshold < 1:
            raise InputError(f"data.superpixels.ucm_threshold={ucm_threshold} must be from 0 up to, not including, 1")
        self.source, self.folder, self.ucm_threshold = source, folder, ucm_threshold
        self.felzenszwalb, self.slic = felzenszwalb, slic

    def mat_file(self, root: Path, image: BSDSImage) -> Path:
        """Where a photograph's superpixels would lie."""
        return root / self.folder / f"{image.id}.mat"

    def source_of(self, root: Path, image: BSDSImage) -> Source:
        """The source that a photograph's guide comes from."""
        if self.source != "auto":
            return self.source
        if self.mat_file(root, image).is_file():
            return "mat"
        return "ucm" if image.ucm2 is not None and image.ucm2.is_file() else "felzenszwalb"

    def check(self, root: Path, images: list[BSDSImage]) -> None:
        """Looks for the files.

        Raises:
            InputError: naming those that are missing, or a layout that has no such files.
        """
        if self.source == "mat":
            missing = [str(path) for image in images if not (path := self.mat_file(root, image)).is_file()]
            if missing:
                raise InputError(
                    f"{len(missing)} of {len(images)} images have no superpixel file: {first_few(missing)}; put them "
                    f"there, or {OTHER_SOURCES}"
                )
        if self.source == "ucm":
            try:
                find_ucm2(images, "data.superpixels.source=ucm")
            except InputError as error:
                raise InputError(f"{error}; {OTHER_SOURCES}") from error

    def from_file(self, root: Path, image: BSDSImage, size: tuple[int, int]) -> NDArray[np.int64]:
        """Superpixels (H, W) that a photograph's file holds, where its source is mat or ucm.

        Raises:
            InputError: the file is missing, broken, of another size than the photograph, has one superpixel or one
                for each pixel.
        """
        if self.source_of(root, image) == "mat":
            path = self.mat_file(root, image)
            labels = read_superpixels(path)
        else:
            path = find_ucm2([image], "data.superpixels.source=ucm")[0]
            ucm2 = read_ucm2(path)
            try:
                labels = ucm_regions(ucm2, self.ucm_threshold)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
        if labels.shape != size:
            raise InputError(
                f"{path} is for an image of {labels.shape[0]}x{labels.shape[1]} pixels (rows x columns), the "
                f"photograph has {size[0]}x{size[1]}: they must have one size"
            )
        return _numbered(labels, image, self.source_of(root, image), least=2)

    def guide(
        self, root: Path, image: BSDSImage, pixels: NDArray[np.uint8], size: tuple[int, int]
    ) -> NDArray[np.int64]:
        """Superpixels (h, w) of a photograph, numbered 0..K-1.

        K is 1 where there is nothing to part, as in a photograph of one colour.

        Args:
            root: folder of the data.
            image: the photograph.
            pixels: RGB (h, w, 3) at the size at which it is segmented.
            size: rows and columns of the photograph itself, which its files have.

        Raises:
            InputError: a file that is missing, broken, of another size or of one superpixel; one superpixel for
                each pixel.
        """
        source = self.source_of(root, image)
        if source in ("mat", "ucm"):
            labels = self.from_file(root, image, size)
            if pixels.shape[:2] != size:
                labels = resize_labels(labels, (pixels.shape[0], pixels.shape[1]))
        else:
            labels = (self.felzenszwalb if source == "felzenszwalb" else self.slic).regions(pixels)
        return _numbered(labels, image, source, least=1)


def _numbered(labels: NDArray[np.int64], image: BSDSImage, source: Source, least: int) -> NDArray[np.int64]:
    """The same superpixels as 0..K-1; refuses fewer than the least and one for each pixel."""
    numbered = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    count = int(numbered.max()) + 1
    if not least <= count < numbered.size:
        raise InputError(
            f"the guide of {image.image} from source {source} has {count} superpixels on "
            f"{numbered.size} pixels: it must part the image, and have fewer superpixels than pixels; choose "
            "another data.superpixels.source or other settings of it"
        )
    return numbered


def find_ucm2(images: list[BSDSImage], wanted_by: str) -> list[Path]:
    """The ucm2 files of photographs.

    Raises:
        InputError: naming those that are missing.
    """
    paths = [image.ucm2 for image in images if image.ucm2 is not None]
    if len(paths) < len(images):
        raise InputError(f"{wanted_by}: this layout has no ucm2 files (BSDS500 has them)")
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{wanted_by}: {len(missing)} of {len(images)} ucm2 files are missing: {first_few(missing)}")
    return paths
