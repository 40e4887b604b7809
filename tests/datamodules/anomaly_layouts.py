"""Writes images with and without defects in each official layout: generated ones, or files of a real sample."""

import csv
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 40)  # height, width


@dataclass(frozen=True)
class Source:
    """One image to lay out; the mask of a normal one is empty."""

    image: Path
    mask: Path
    defective: bool


def generated_sources(folder: Path, normal: int = 6, defective: int = 4) -> list[Source]:
    """Noise with bright squares; masks of 0 and 255."""
    folder.mkdir(parents=True)
    sources = []
    for number in range(normal + defective):
        generator = np.random.default_rng(number)
        image = generator.integers(60, 120, SIZE, dtype=np.uint8)
        mask = np.zeros(SIZE, dtype=np.uint8)
        if number >= normal:
            mask[5 + number : 15 + number, 8:20] = 255
            image[mask > 0] = 250
        paths = folder / f"{number:03d}.png", folder / f"{number:03d}_mask.png"
        Image.fromarray(image).save(paths[0])
        Image.fromarray(mask).save(paths[1])
        sources.append(Source(*paths, number >= normal))
    return sources


def tile_sources(sample_data: Path, count: int = 8) -> list[Source]:
    """Files of the magnetic tile sample: half normal, half with blowholes."""
    root = sample_data / "magnetic_tile"
    sources = []
    for name in ("Free", "Blowhole"):
        for image in sorted((root / f"MT_{name}" / "Imgs").glob("*.jpg"))[: count // 2]:
            sources.append(Source(image, image.with_suffix(".png"), name != "Free"))
    return sources


def halves(sources: list[Source], defective: bool) -> tuple[list[Source], list[Source]]:
    """Sources of one kind for training and for the test."""
    own = [source for source in sources if source.defective == defective]
    return own[::2], own[1::2]


def put(source: Path, target: Path) -> None:
    """Copies a picture; another suffix means another format."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix.lower() == target.suffix.lower():
        shutil.copy(source, target)
        return
    with Image.open(source) as picture:
        picture.save(target)


def lay_mvtec(sources: list[Source], root: Path, category: str = "tile") -> Path:
    train, test = halves(sources, False)
    for part, images in (("train", train), ("test", test)):
        for number, source in enumerate(images):
            put(source.image, root / category / part / "good" / f"{number:03d}.png")
    for number, source in enumerate(s for s in sources if s.defective):
        put(source.image, root / category / "test" / "hole" / f"{number:03d}.png")
        put(source.mask, root / category / "ground_truth" / "hole" / f"{number:03d}_mask.png")
    return root


def lay_visa(sources: list[Source], root: Path, category: str = "tile") -> Path:
    """As distributed: masks hold small class numbers, the table says what is for training."""
    rows = []
    train, test = halves(sources, False)
    for part, images in (("test", test), ("train", train)):  # folder order is not the split
        for source in images:
            name = f"{category}/Data/Images/Normal/{len(rows):04d}.JPG"
            put_jpeg(source.image, root / name)
            rows.append((category, part, "normal", name, ""))
    for source in (s for s in sources if s.defective):
        number = f"{len(rows):03d}"
        names = f"{category}/Data/Images/Anomaly/{number}.JPG", f"{category}/Data/Masks/Anomaly/{number}.png"
        put_jpeg(source.image, root / names[0])
        put_class_mask(source.mask, root / names[1])
        rows.append((category, "test", "anomaly", *names))
    (root / "split_csv").mkdir(parents=True, exist_ok=True)
    with (root / "split_csv" / "1cls.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("object", "split", "label", "image", "mask"), *rows])
    return root


def put_jpeg(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        picture.convert("RGB").save(target, format="JPEG", quality=95)


def put_class_mask(source: Path, target: Path) -> None:
    """Defects as class 1 on their left half and class 2 on their right one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        mask = np.asarray(picture.convert("L")) > 127
    classes = np.where(np.arange(mask.shape[1]) < mask.shape[1] // 2, 1, 2)
    Image.fromarray((mask * classes).astype(np.uint8)).save(target)


def lay_visa_converted(sources: list[Source], root: Path, category: str = "tile") -> Path:
    train, test = halves(sources, False)
    folder = root / "visa_pytorch" / category
    for part, images in (("train", train), ("test", test)):
        for number, source in enumerate(images):
            put_jpeg(source.image, folder / part / "good" / f"{number:04d}.JPG")
    for number, source in enumerate(s for s in sources if s.defective):
        put_jpeg(source.image, folder / "test" / "bad" / f"{number:03d}.JPG")
        put_class_mask(source.mask, folder / "ground_truth" / "bad" / f"{number:03d}.png")
    return root


def lay_ksdd2(sources: list[Source], root: Path) -> Path:
    number = 10000
    for defective in (False, True):
        for part, images in zip(("train", "test"), halves(sources, defective), strict=True):
            for source in images:
                put(source.image, root / part / f"{number}.png")
                put(source.mask, root / part / f"{number}_GT.png")
                number += 1
    return root


def lay_sensum(sources: list[Source], root: Path, lists: bool = True) -> Path:
    for category in ("capsule", "softgel"):
        numbers = {False: [], True: []}
        for source in sources:
            number = len(numbers[source.defective])
            numbers[source.defective].append(number)
            folder = root / category / ("positive" if source.defective else "negative")
            put(source.image, folder / "data" / f"{number:03d}.png")
            if source.defective:
                put(source.mask, folder / "annotation" / f"{number:03d}.png")
        if not lists:
            continue
        for fold in range(3):
            for part in ("train", "test"):
                target = root / "sensum_splits" / category / str(fold) / part
                target.mkdir(parents=True)
                for defective, names in ((False, ["neg"]), (True, ["pos", "pos_100"])):
                    for name in names:
                        pairs = [
                            (number, name != "pos")
                            for number in numbers[defective]
                            if (number % 3 == fold) == (part == "test")
                        ]
                        (target / f"{name}.pckl").write_bytes(pickle.dumps(pairs))
    return root


def lay_folder(sources: list[Source], root: Path, masks: bool = True) -> Path:
    for source in sources:
        put(source.image, root / ("abnormal" if source.defective else "normal") / source.image.name)
        if source.defective and masks:
            put(source.mask, root / "masks" / f"{source.image.stem}.png")
    return root


def lay_tiles(root: Path, tiles: int = 4, exposures: int = 3) -> Path:
    """Generated images under the names of the magnetic tile set, every tile under several exposures."""
    for name in ("Free", "Blowhole", "Crack"):
        number = 1000
        for tile in range(tiles):
            number += 5000
            for exposure in range(1, exposures + 1):
                generator = np.random.default_rng([tile, exposure])
                image = generator.integers(60, 120, SIZE, dtype=np.uint8)
                mask = np.zeros(SIZE, dtype=np.uint8)
                if name != "Free":
                    mask[10:20, 10:20] = 255
                    mask[9, 10:20] = 90  # a soft edge, which is no defect
                    image[mask > 127] = 10
                stem = root / f"MT_{name}" / "Imgs" / f"exp{exposure}_num_{number}"
                stem.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(stem.with_suffix(".jpg"))
                Image.fromarray(mask).save(stem.with_suffix(".png"))
                number += 20
    return root
