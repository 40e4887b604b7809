"""A generation is whole or invisible, does not depend on who wrote it, and cannot change unseen."""

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.utils.data import DataLoader, Dataset

from runs.errors import InputError
from runs.round_store import Generation, OtherRankError, Ranks, RoundReader, RoundStore


def masks(count: int, seed: int = 0) -> dict[int, np.ndarray]:
    """One mask for each image, each of its own size, under scattered indices."""
    generator = np.random.default_rng(seed)
    indices = generator.choice(10 * count, count, replace=False)
    return {
        int(index): generator.integers(0, 21, tuple(generator.integers(1, 30, 2)), dtype=np.uint8) for index in indices
    }


def write_labels(store: RoundStore, number: int, count: int = 5) -> Generation:
    with store.write(number) as generation:
        generation.put("label", np.arange(count), np.full(count, number))
    return generation.committed


def on_disk(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def as_processes(count: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """Runs `work` once for each rank at the same time, with a true all-gather between them."""
    barrier, slots, results = threading.Barrier(count), [None] * count, [None] * count

    def rank(number: int) -> None:
        def all_gather(value: Any) -> list[Any]:
            slots[number] = value
            barrier.wait(timeout=20)
            everything = list(slots)
            barrier.wait(timeout=20)
            return everything

        try:
            results[number] = work(Ranks(number, count, all_gather))
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


def test_masks_of_varying_size_come_back_as_they_were_put(tmp_path: Path) -> None:
    put = masks(40)
    with RoundStore(tmp_path).write(1) as generation:
        for index, mask in put.items():
            generation.put("mask", index, mask)
    read = RoundStore(tmp_path).read()["mask"]
    assert read.indices.tolist() == sorted(put)
    assert len(read) == 40
    for index, mask in put.items():
        np.testing.assert_array_equal(read[index], mask)
        assert read[index].dtype == np.uint8
    missing = next(index for index in range(400) if index not in put)
    assert missing not in read
    assert read.get(missing, "none") == "none"
    with pytest.raises(KeyError, match=str(missing)):
        read[missing]


def test_a_batch_put_at_once_equals_its_samples_put_one_by_one(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    index, values = generator.permutation(64), generator.normal(size=(64, 3, 2)).astype(np.float32)
    with RoundStore(tmp_path / "batches").write(1) as batches:
        for start in range(0, 64, 10):
            chosen = slice(start, start + 10)
            batches.put("map", torch.tensor(index[chosen]), torch.tensor(values[chosen]))
    with RoundStore(tmp_path / "singles").write(1) as singles:
        for place in range(64):
            singles.put("map", index[place], values[place])
    assert on_disk(tmp_path / "batches") == on_disk(tmp_path / "singles")
    np.testing.assert_array_equal(batches.committed["map"].stacked[index], values)


@pytest.mark.parametrize(
    "value",
    [3, 2.5, True, np.float16(np.nan), np.zeros((0, 4)), np.ones((2, 3))[:, ::2], torch.tensor(7)],
)
def test_numbers_flags_empty_arrays_and_views_can_be_put(tmp_path: Path, value: Any) -> None:
    with RoundStore(tmp_path).write(1) as generation:
        generation.put("value", 9, value)
        generation.put("value", 4, value)
    read = generation.committed["value"]
    np.testing.assert_array_equal(read[4], np.asarray(value))
    assert read[9].shape == np.asarray(value).shape


def test_what_is_read_may_be_changed_without_changing_the_store(tmp_path: Path) -> None:
    stored = write_labels(RoundStore(tmp_path), 1)
    label = stored["label"][3]
    label += 100
    assert stored["label"][3] == 1
    with pytest.raises(ValueError):
        stored["label"].stacked[3] = 100


def test_a_graph_may_have_another_shape_in_each_generation(tmp_path: Path) -> None:
    store, graphs = RoundStore(tmp_path, keep=3), {}
    for number in (1, 2, 3):
        graphs[number] = scipy.sparse.random(50, 50, 0.2 / number, "csr", rng=number)
        with store.write(number) as generation:
            for part in ("indptr", "indices", "data"):
                generation.put_array(f"graph_{part}", getattr(graphs[number], part))
            generation.note(modularity=np.float64(0.5), removed=[4, 16], farthest=np.arange(2))
    for number, graph in graphs.items():
        read = store.read(number)
        parts = [read.array(f"graph_{part}") for part in ("data", "indices", "indptr")]
        assert (scipy.sparse.csr_matrix(tuple(parts), shape=(50, 50)) != graph).nnz == 0
        assert read.notes == {"modularity": 0.5, "removed": [4, 16], "farthest": [0, 1]}


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_write_the_very_files_that_one_writes(tmp_path: Path, processes: int) -> None:
    put = masks(31)

    def write(ranks: Ranks, folder: Path) -> Generation:
        with RoundStore(folder, ranks=ranks).write(1, {"threshold": 0.3}) as generation:
            for index in list(put)[ranks.rank :: ranks.world_size]:
                generation.put("mask", index, put[index])
                generation.put("area", index, put[index].size)
            if ranks.rank == ranks.world_size - 1:  # one process alone has this field
                generation.put("last", 5, np.ones(2))
            generation.put_array("seen_by", np.array([ranks.rank]))
        return generation.committed

    write(Ranks(), tmp_path / "one")
    readers = as_processes(processes, lambda ranks: write(ranks, tmp_path / "several"))
    assert on_disk(tmp_path / "one") == on_disk(tmp_path / "several")
    assert len({reader.digest for reader in readers}) == 1


def test_a_process_that_fails_releases_the_others_with_the_reason(tmp_path: Path) -> None:
    def write(ranks: Ranks) -> None:
        with RoundStore(tmp_path, ranks=ranks).write(1) as generation:
            if ranks.rank == 1:
                error = InputError("image 7 is broken")
                ranks.report_failure(error)
                raise error
            generation.put("label", 1, 1)

    errors = as_processes(3, write)
    assert [type(error) for error in errors] == [OtherRankError, InputError, OtherRankError]
    assert "image 7 is broken" in str(errors[0])
    assert list(tmp_path.iterdir()) == []


def test_any_process_can_discard_a_generation_and_the_one_before_goes_on(tmp_path: Path) -> None:
    before = write_labels(RoundStore(tmp_path), 1)

    def write(ranks: Ranks) -> Generation | None:
        with RoundStore(tmp_path, ranks=ranks).write(2) as generation:
            generation.put("label", ranks.rank, 0)
            if ranks.rank == 1:
                generation.discard()
        return generation.committed

    assert as_processes(2, write) == [None, None]
    assert RoundStore(tmp_path).read().digest == before.digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["000001"]


def test_an_error_in_the_middle_leaves_the_last_generation(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    before = on_disk(write_labels(store, 1).folder)
    with pytest.raises(ZeroDivisionError), store.write(2) as generation:
        generation.put("label", 0, 5)
        _ = 1 / 0
    assert store.numbers() == [1]
    assert on_disk(tmp_path / "000001") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["000001"]


def test_what_a_killed_process_left_is_invisible_and_removed_by_the_next_write(
    tmp_path: Path,
) -> None:
    store = RoundStore(tmp_path)
    write_labels(store, 1)

    def killed() -> None:
        with store.write(2) as generation:
            generation.put("label", 0, np.zeros(10**6))
            os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert (tmp_path / "000002.partial").is_dir()
    assert store.numbers() == [1]
    assert store.read().number == 1
    write_labels(store, 3)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["000001", "000003"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
@pytest.mark.parametrize("size", [10, 10**6], ids=["found when closed", "found when put"])
def test_a_full_disk_is_told_in_a_sentence_and_the_last_generation_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    store = RoundStore(tmp_path)
    write_labels(store, 1)
    monkeypatch.setattr("runs.round_store.GenerationWriter._part_path", lambda *_: Path("/dev/full"))
    with (
        pytest.raises(InputError, match=r"the disk is full: .*000002 was not written"),
        store.write(2) as generation,
    ):
        generation.put("mask", 0, np.zeros(size))
    assert [entry.name for entry in tmp_path.iterdir()] == ["000001"]
    store.read().verify()


def test_the_disk_may_also_be_full_when_the_parts_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RoundStore(tmp_path)
    write_labels(store, 1)

    def full(stream) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runs.round_store.flush_to_disk", full)
    with pytest.raises(InputError, match="the disk is full"):
        write_labels(store, 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["000001"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_generations_and_the_protected_ones_stay(tmp_path: Path, keep: int) -> None:
    store = RoundStore(tmp_path, keep)
    for number in range(1, 7):
        write_labels(store, number)
        assert store.numbers() == list(range(max(1, number - keep + 1), number + 1))
    store.protected = {6}
    for number in range(7, 11):
        write_labels(store, number)
    assert store.numbers() == [6, *range(11 - keep, 11)]


def test_a_run_that_went_back_replaces_what_it_had_written_later(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, keep=2)
    for number in (1, 2, 3):
        write_labels(store, number)
    with store.write(2) as generation:
        generation.put("label", 0, -1)
    assert store.numbers() == [2]
    assert store.read()["label"][0] == -1


def test_a_reader_goes_on_reading_a_generation_that_is_removed(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, keep=1)
    old = write_labels(store, 1)
    write_labels(store, 2)
    assert old["label"][4] == 1


@pytest.mark.parametrize("name", ["label.npy", "label.index.npy", "means.npy"])
def test_one_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    with RoundStore(tmp_path).write(1) as generation:
        generation.put("label", np.arange(5), np.arange(5))
        generation.put_array("means", np.ones(4))
    path = tmp_path / "000001" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    altered = RoundStore(tmp_path).read()
    with pytest.raises(InputError, match=name):
        altered.verify()


@pytest.mark.parametrize("harm", ["cut", "missing", "header", "manifest", "folder"])
def test_a_generation_that_is_not_whole_is_not_opened(tmp_path: Path, harm: str) -> None:
    store = RoundStore(tmp_path)
    digest = write_labels(store, 1).digest
    path = tmp_path / "000001" / "label.npy"
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    if harm == "missing":
        path.unlink()
    if harm == "header":
        path.write_bytes(path.read_bytes().replace(b"<i8", b"<f8"))
    if harm == "manifest":
        manifest = path.with_name("manifest.json")
        manifest.write_text(manifest.read_text().replace('"made_by": ""', '"made_by": "x"'))
    if harm == "folder":
        path.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="000001 cannot be used"):
        store.read(1, digest)


def test_no_round_yet_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no round has finished yet"):
        RoundStore(tmp_path / "nothing").read()


def test_a_sample_put_twice_is_refused_by_name(tmp_path: Path) -> None:
    def write(ranks: Ranks) -> None:
        try:
            with RoundStore(tmp_path, ranks=ranks).write(1) as generation:
                generation.put("label", 10 + ranks.rank, 0)
                generation.put("label", 99, 0)
        except InputError as error:
            if not isinstance(error, OtherRankError):
                ranks.report_failure(error)
            raise

    error = as_processes(2, write)[0]
    assert isinstance(error, InputError)
    assert "'label' got more than one value for sample 99:" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_a_field_has_one_dtype_and_one_number_of_axes(tmp_path: Path) -> None:
    for other in (np.zeros(3, np.float64), np.zeros((3, 1), np.float32)):
        with pytest.raises(ValueError, match="field 'map' holds <f4 arrays of 1 axes"):  # noqa: SIM117
            with RoundStore(tmp_path).write(1) as generation:
                generation.put("map", 1, np.zeros(3, np.float32))
                generation.put("map", 2, other)


def test_a_generation_can_be_pickled_and_is_checked_where_it_is_opened(tmp_path: Path) -> None:
    generation = write_labels(RoundStore(tmp_path), 1)
    pickled = pickle.dumps(generation)
    assert len(pickled) < 500
    assert pickle.loads(pickled)["label"][2] == 1
    write_labels(RoundStore(tmp_path), 1, count=6)
    with pytest.raises(InputError, match="another one"):
        pickle.loads(pickled)


class ReadsLabels(Dataset):
    def __init__(self, rounds: RoundReader) -> None:
        self.rounds = rounds

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> int:
        generation = self.rounds.generation
        return -1 if generation is None else int(generation["label"][index])


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_that_live_on_see_the_new_generation(tmp_path: Path, start_method: str) -> None:
    store, reader = RoundStore(tmp_path), RoundReader(tmp_path)
    loader = DataLoader(
        ReadsLabels(reader),
        batch_size=5,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context=start_method,
    )
    assert [batch.tolist() for batch in loader] == [[-1] * 5]
    for number in (1, 2, 3):
        reader.show(write_labels(store, number))
        assert [batch.tolist() for batch in loader] == [[number] * 5]


def test_a_reader_pickled_for_keeps_stays_at_its_generation(tmp_path: Path) -> None:
    store, reader = RoundStore(tmp_path), RoundReader(tmp_path)
    reader.show(write_labels(store, 1))
    copy = pickle.loads(pickle.dumps(reader))
    reader.show(write_labels(store, 2))
    assert (copy.generation.number, reader.generation.number) == (1, 2)
