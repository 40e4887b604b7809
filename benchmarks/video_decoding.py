"""Eight frames of each clip: one pass against decoding the whole clip first and against seeking.

    python benchmarks/video_decoding.py <folder of videos>

Alternative (a) is what readers in the manner of torchvision.io do: decode every frame to an RGB
array, then pick. Alternative (b) seeks by timestamp to the key frame before each wanted frame.
Both are written with the same PyAV, so the ratios are those of the method. Without a folder, the
generated clips of the demo are used.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch

from datamodules.segment_sampling import centre_crop, crop_to_cell, segment_indices
from datamodules.shapes_video import ShapesVideo
from datamodules.video_files import (
    VIDEO_SUFFIXES,
    FrameSource,
    count_frames,
    probe,
    read_frames,
)

FRAMES, CELL, REPEATS = 8, 192, 3


def centre_frames(num_frames: int) -> np.ndarray:
    return segment_indices(num_frames, np.full(FRAMES, 0.5))


def whole_clip_then_pick(path: Path) -> torch.Tensor:
    """(a): every frame becomes an RGB array before eight are picked."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    return clip[torch.from_numpy(centre_frames(len(clip)))]


def seek_to_each_frame(path: Path, numbers: np.ndarray) -> torch.Tensor | None:
    """(b): None where a timestamp leads to no frame."""
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        ticks = float(1 / (stream.average_rate * stream.time_base))
        for number in numbers:
            container.seek(round(number * ticks), stream=stream)
            for frame in container.decode(stream):
                if frame.pts is not None and round(frame.pts / ticks) >= number:
                    found.append(frame.to_ndarray(format="rgb24"))
                    break
    if len(found) < len(numbers):
        return None
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def seconds(action: Callable[[Path], object], paths: list[Path]) -> float:
    """Processor time of the best of REPEATS passes over all clips; a busy machine adds none."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        for path in paths:
            action(path)
        best = min(best, time.process_time() - start)
    return best


def super_image_cells(frames: torch.Tensor) -> torch.Tensor:
    return crop_to_cell(frames, centre_crop(*frames.shape[-2:]), CELL, mirrored=False)


def compare(paths: list[Path]) -> None:
    av.logging.set_level(av.logging.FATAL)
    torch.set_num_threads(1)
    lengths = {path: count_frames(path) for path in paths}
    numbers = {path: centre_frames(lengths[path]) for path in paths}
    source = FrameSource("none", 0)

    ours = seconds(lambda path: source.read(path, centre_frames), paths)
    whole = seconds(whole_clip_then_pick, paths)
    seeking = seconds(lambda path: seek_to_each_frame(path, numbers[path]), paths)
    ours_cells = seconds(lambda p: super_image_cells(source.read(p, centre_frames)), paths)
    whole_cells = seconds(lambda p: super_image_cells(whole_clip_then_pick(p)), paths)
    wrong = sum(
        (sought := seek_to_each_frame(path, numbers[path])) is None
        or not torch.equal(sought, read_frames(path, numbers[path]))
        for path in paths
    )
    rows = [
        ("one pass, wanted frames converted (used here)", ours),
        ("(a) whole clip to RGB, then pick", whole),
        ("(b) seek to each frame", seeking),
        ("one pass + cells of 192 px", ours_cells),
        ("(a) + cells of 192 px", whole_cells),
        ("check a file at set-up", seconds(probe, paths)),
        ("count frames by decoding", seconds(count_frames, paths)),
    ]
    print(f"{len(paths)} clips, {sum(lengths.values())} frames, {FRAMES} wanted of each, 1 thread")
    for name, taken in rows:
        per_clip = 1000 * taken / len(paths)
        print(f"  {name:<48}{per_clip:8.2f} ms a clip   {taken / ours:6.2f} x")
    print(f"  (b) returns a wrong frame or none in {wrong} of {len(paths)} clips")
    print(f"  ratio (a) / one pass: {whole / ours:.2f}, with cells: {whole_cells / ours_cells:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="searched recursively for videos")
    folder = parser.parse_args().folder
    if folder is not None:
        compare(sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES))
        return
    with tempfile.TemporaryDirectory() as scratch:
        shapes = ShapesVideo(
            seed=0,
            train_per_class=5,
            test_per_class=1,
            side=256,
            frames=(100, 200),
            travel=(0.5, 0.9),
            middle_spread=0.2,
            radius=(20, 60),
            texture=20,
            background=(40, 70),
            colour=(200, 255),
            noise=4,
        )
        root = Path(scratch) / "shapes"
        shapes.write(root, "ucfTrainTestlist")
        compare(sorted(root.rglob("*.avi")))


if __name__ == "__main__":
    main()
