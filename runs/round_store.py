"""What a round leaves for the loaders: arrays by sample index, whole generations, checksummed.

On disk, below the store's folder::

    000003/                  a generation, named by its round; visible only when complete
        manifest.json        fields, shapes, notes, settings; size and checksum of each file below
        mask.npy             a field whose arrays all have one shape: stacked, (n, *shape)
        mask.index.npy       the n sample indices, ascending
        depth.npy            a field of varying shapes: all values end to end, (total,)
        depth.shapes.npy     the shape of each array, (n, ndim)
        graph_indptr.npy     an array of the round as a whole
    000004.partial/          a round at work, or what a crash left; the next write removes it

Each process of a distributed round writes a part of its own; the first process merges the parts in
the order of the sample index, so the files do not depend on the number of processes.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runs.atomic_files import flush_folder, flush_to_disk, full_disk_in_words
from runs.errors import InputError, first_few

MANIFEST = "manifest.json"
PARTIAL = ".partial"
FORMAT = 1
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_BLOCK_BYTES = 16 * 2**20


class OtherRankError(InputError):
    """Another process of a distributed round failed; this one stops with it."""


@dataclass(frozen=True)
class Ranks:
    """The processes that make a round together; one process by default."""

    rank: int = 0
    world_size: int = 1
    all_gather: Callable[[Any], list[Any]] = lambda value: [value]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of ranks. Waits for all of them.

        Raises:
            OtherRankError: a process reported a failure instead.
        """
        answers = self.all_gather((value, None))
        for rank, (_, failure) in enumerate(answers):
            if failure is not None:
                raise OtherRankError(f"process {rank} stopped the round: {failure}")
        return [answer for answer, _ in answers]

    def report_failure(self, error: Exception) -> None:
        """Releases the other processes, which wait in `gather`, with the reason."""
        self.all_gather((None, str(error) or type(error).__name__))


class Field:
    """One field of a generation: an array for each sample index it was put for."""

    def __init__(self, values: np.ndarray, indices: np.ndarray, shapes: np.ndarray | None) -> None:
        self.indices = np.array(indices)
        self._values, self._shapes = values, shapes
        if shapes is not None:
            self._ends = np.cumsum(np.prod(shapes, axis=1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.indices)

    def __contains__(self, index: int) -> bool:
        return self._position(index) is not None

    def __getitem__(self, index: int) -> np.ndarray:
        """The array of a sample, as a copy that may be changed.

        Raises:
            KeyError: nothing was put for this sample.
        """
        position = self._position(index)
        if position is None:
            raise KeyError(f"sample {index} has no value in this generation")
        return self._at(position)

    def get(self, index: int, default: Any = None) -> Any:
        """The array of a sample, or ``default`` where nothing was put for it."""
        position = self._position(index)
        return default if position is None else self._at(position)

    @property
    def stacked(self) -> np.ndarray:
        """All arrays of a field of one shape, ``(n, *shape)``, as ``indices`` orders; read-only.

        Raises:
            TypeError: the arrays have different shapes.
        """
        if self._shapes is not None:
            raise TypeError("the arrays of this field have different shapes: read them one by one")
        return self._values

    def _at(self, position: int) -> np.ndarray:
        if self._shapes is None:
            return np.array(self._values[position])
        shape = self._shapes[position]
        end = self._ends[position]
        return np.array(self._values[end - np.prod(shape, dtype=np.int64) : end]).reshape(shape)

    def _position(self, index: int) -> int | None:
        position = int(np.searchsorted(self.indices, index))
        found = position < len(self.indices) and self.indices[position] == index
        return position if found else None


class Generation:
    """What one round left, memory-mapped. Picklable: another process opens the same files itself.

    Attributes:
        number: the round that wrote it, counted from 1.
        digest: checksum of the manifest, and through it of everything else.
        fields: names of the arrays keyed by sample index; ``generation["mask"][index]``.
        notes: plain values that the round noted down.
        settings: the settings of the step that wrote it.

    Raises:
        InputError: the folder is not a whole generation: something is missing, cut or replaced.
    """

    def __init__(self, folder: str | Path, digest: str | None = None) -> None:
        self.folder = Path(folder)
        manifest = self._read_manifest(digest)
        self.number: int = manifest["round"]
        self.notes: dict[str, Any] = manifest["notes"]
        self.settings: dict[str, Any] = manifest["settings"]
        self._files: dict[str, dict[str, Any]] = manifest["files"]
        opened = {name: self._open(name, facts) for name, facts in self._files.items()}
        self._fields = {
            name: Field(opened[f"{name}.npy"], opened[f"{name}.index.npy"], opened.get(f"{name}.shapes.npy"))
            for name in manifest["fields"]
        }
        self._arrays = {name: opened[f"{name}.npy"] for name in manifest["arrays"]}

    def __reduce__(self) -> tuple[Any, ...]:
        return Generation, (str(self.folder), self.digest)

    @property
    def fields(self) -> list[str]:
        return list(self._fields)

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __getitem__(self, name: str) -> Field:
        return self._named(self._fields, name, "field")

    def indices(self, name: str) -> np.ndarray:
        """The sample indices of a field, ascending int64."""
        return self[name].indices

    def array(self, name: str) -> np.ndarray:
        """An array of the round as a whole (a graph, a table of means); read-only."""
        return self._named(self._arrays, name, "array")

    def verify(self) -> None:
        """Reads every file through and compares its checksum.

        Raises:
            InputError: naming the files that changed.
        """
        changed = [name for name, facts in self._files.items() if _file_digest(self.folder / name) != facts["blake2b"]]
        if changed:
            raise self._broken(f"{first_few(changed)} changed since the round wrote it")

    def _named(self, known: Mapping[str, Any], name: str, kind: str) -> Any:
        if name not in known:
            held = first_few(list(known)) if known else "none"
            raise KeyError(f"no {kind} '{name}' in {self.folder}: it holds {held}")
        return known[name]

    def _read_manifest(self, digest: str | None) -> dict[str, Any]:
        try:
            content = (self.folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise self._broken("it is missing") from None
        self.digest = _digest(content)
        if digest is not None and digest != self.digest:
            raise self._broken("it is another one than the checkpoint was trained with")
        try:
            manifest = json.loads(content)
        except ValueError:
            raise self._broken(f"its {MANIFEST} cannot be read") from None
        if manifest.get("format") != FORMAT:
            raise self._broken(f"its format is {manifest.get('format')} instead of {FORMAT}")
        return manifest

    def _open(self, name: str, facts: Mapping[str, Any]) -> np.ndarray:
        path = self.folder / name
        if not path.is_file():
            raise self._broken(f"{name} is missing")
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise self._broken(f"{name} has {size} bytes instead of {facts['bytes']}")
        try:
            opened = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:
            raise self._broken(f"{name} is no array") from None
        if (opened.dtype.str, list(opened.shape)) != (facts["dtype"], facts["shape"]):
            raise self._broken(f"the header of {name} changed")
        return opened

    def _broken(self, reason: str) -> InputError:
        return InputError(
            f"the round results in {self.folder} cannot be used: {reason}; put the folder back as "
            "it was, or start the run anew"
        )


class RoundReader:
    """The generation that holds now: one object for the whole run, shared with worker processes.

    A dataset keeps it and asks for ``generation`` in each ``__getitem__``, once for each sample.
    The number of the generation lies in memory that worker processes inherit, so that workers which
    live through many epochs see the new one, and all see it at the same moment.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._number = RawValue("q", 0)
        self._opened: Generation | None = None

    @property
    def generation(self) -> Generation | None:
        """The whole generation that holds now; None before the first."""
        number = self._number.value
        if number == 0:
            return None
        if self._opened is None or self._opened.number != number:
            self._opened = Generation(_generation_folder(self._folder, number))
        return self._opened

    def show(self, generation: Generation | None) -> None:
        """Makes ``generation`` the one that this process and its workers read."""
        self._opened = generation
        self._number.value = 0 if generation is None else generation.number

    def __getstate__(self) -> dict[str, Any]:
        # Shared memory can only be inherited; a pickle made for another purpose keeps the number.
        inherited = get_spawning_popen() is not None
        number = self._number if inherited else self._number.value
        return {"_folder": self._folder, "_number": number, "_opened": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._number, int):
            self._number = RawValue("q", self._number)


@dataclass
class _Part:
    """What one process put into one field: the values end to end, and a table of them."""

    dtype: str
    axes: int
    stream: BinaryIO
    indices: list[np.ndarray] = field(default_factory=list)
    shapes: list[np.ndarray] = field(default_factory=list)

    def table(self) -> tuple[str, np.ndarray, np.ndarray]:
        return self.dtype, np.concatenate(self.indices), np.concatenate(self.shapes)


class GenerationWriter:
    """Takes the results of a round as they come; nothing is kept in memory but the index.

    Attributes:
        committed: the finished generation, once the ``with`` block of `RoundStore.write` is left;
            None if it was discarded.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.committed: Generation | None = None
        self._folder, self._rank = folder, rank
        self._parts: dict[str, _Part] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._notes: dict[str, Any] = {}
        self._discarded = False

    def put(self, name: str, index: Any, values: Any) -> None:
        """Stores the array of one sample, or of several at once.

        Args:
            name: the field. All its arrays have one dtype and number of axes; shapes may differ.
            index: the sample's index, or a vector of indices; then the first axis of ``values``
                runs along it. Every index once, over all processes.
            values: numpy array, torch tensor or number.

        Raises:
            ValueError: a dtype or number of axes other than before.
        """
        values, indices = _as_array(values), _as_array(index)
        if indices.ndim == 0:
            indices, values = indices[None], values[None]
        if len(indices) != len(values):
            raise ValueError(f"field '{name}': {len(indices)} indices for {len(values)} arrays")
        shape = values.shape[1:]
        part = self._parts.get(name) or self._open_part(name, values.dtype, len(shape))
        if (values.dtype.str, len(shape)) != (part.dtype, part.axes):
            raise ValueError(
                f"field '{name}' holds {part.dtype} arrays of {part.axes} axes, not {values.dtype.str} of {len(shape)}"
            )
        with full_disk_in_words(self._folder.with_suffix("")):
            part.stream.write(values.reshape(-1).view(np.uint8).data)
        part.indices.append(indices.astype(np.int64))
        part.shapes.append(np.tile(np.array(shape, dtype=np.int64), (len(indices), 1)))

    def put_array(self, name: str, values: Any) -> None:
        """Stores an array of the round as a whole; that of the first process is kept."""
        _check_name(name)
        self._arrays[name] = _as_array(values)

    def note(self, **values: Any) -> None:
        """Notes down plain values (numbers, words, lists); those of the first process are kept."""
        self._notes.update(values)

    def discard(self) -> None:
        """Drops this generation: the one before goes on to hold. One process's word is enough."""
        self._discarded = True

    def _open_part(self, name: str, dtype: np.dtype, axes: int) -> _Part:
        _check_name(name)
        if dtype.hasobject:
            raise ValueError(f"field '{name}': arrays of Python objects cannot be stored")
        stream = self._part_path(name, self._rank).open("wb")
        return self._parts.setdefault(name, _Part(dtype.str, axes, stream))

    def _part_path(self, name: str, rank: int) -> Path:
        return self._folder / f"{name}.rank{rank}"

    def _close(self) -> None:
        with full_disk_in_words(self._folder.with_suffix("")):
            for part in self._parts.values():
                part.stream.close()

    def _tables(self) -> tuple[dict[str, Any], bool]:
        return {name: part.table() for name, part in self._parts.items()}, self._discarded

    def _finish(self, tables: list[dict[str, Any]], origin: dict[str, Any]) -> None:
        """First process only: merges the parts of all and writes the manifest, the last file."""
        files: dict[str, Any] = {}
        names = list(dict.fromkeys(name for table in tables for name in table))
        both = set(names) & set(self._arrays)
        if both:
            raise ValueError(f"{first_few(sorted(both))} name both a field and an array")
        for name in sorted(names):
            parts = {rank: table[name] for rank, table in enumerate(tables) if name in table}
            self._merge(name, parts, files)
        for name, values in sorted(self._arrays.items()):
            files[f"{name}.npy"] = _write_array(self._folder / f"{name}.npy", values.dtype, values.shape, [values])
        content = {
            **origin,
            "format": FORMAT,
            "fields": sorted(names),
            "arrays": sorted(self._arrays),
            "notes": self._notes,
            "files": files,
        }
        with open(self._folder / MANIFEST, "wb") as stream:
            text = json.dumps(content, indent=1, sort_keys=True, default=_plain_number)
            stream.write(text.encode())
            flush_to_disk(stream)
        flush_folder(self._folder)

    def _merge(self, name: str, parts: dict[int, Any], files: dict[str, Any]) -> None:
        dtypes = {dtype for dtype, _, _ in parts.values()}
        axes = {shapes.shape[1] for _, _, shapes in parts.values()}
        if len(dtypes) > 1 or len(axes) > 1:
            raise ValueError(f"field '{name}': processes put {first_few(sorted(dtypes))} arrays")
        dtype = np.dtype(dtypes.pop())
        indices = np.concatenate([part[1] for part in parts.values()])
        shapes = np.concatenate([part[2] for part in parts.values()])
        order = np.argsort(indices, kind="stable")
        indices, sorted_shapes = indices[order], shapes[order]
        twice = np.unique(indices[1:][indices[1:] == indices[:-1]])
        if len(twice):
            raise InputError(
                f"field '{name}' got more than one value for sample {first_few(twice.tolist())}: "
                "sample indices must be unique, and each sample belong to one process"
            )
        uniform = bool((shapes == shapes[0]).all())
        sources = [_flat(self._part_path(name, rank), dtype) for rank in parts]
        counts = [len(part[1]) for part in parts.values()]
        if uniform:
            shape = (len(indices), *shapes[0].tolist())
            rows = [
                source.reshape(count, -1) if source.size else np.empty((count, 0), dtype)
                for source, count in zip(sources, counts, strict=True)
            ]
            chunks = _rows_in_order(rows, order)
        else:
            shape = (int(np.prod(shapes, axis=1, dtype=np.int64).sum()),)
            chunks = _arrays_in_order(sources, counts, shapes, order)
        write = {f"{name}.npy": (dtype, shape, chunks)}
        write[f"{name}.index.npy"] = (indices.dtype, indices.shape, [indices])
        if not uniform:
            write[f"{name}.shapes.npy"] = (shapes.dtype, shapes.shape, [sorted_shapes])
        for file, content in write.items():
            files[file] = _write_array(self._folder / file, *content)
        for rank in parts:
            self._part_path(name, rank).unlink()


class RoundStore:
    """The generations of one iterative step, under one folder.

    Args:
        folder: where they lie, for example ``<stage_dir>/rounds/pseudo_label_refresh``.
        keep: how many of the newest generations stay; protected ones stay besides.
        ranks: the processes that write together; they share the folder.
    """

    def __init__(self, folder: str | Path, keep: int = 2, ranks: Ranks | None = None) -> None:
        if keep < 1:
            raise InputError(f"keep={keep} leaves no round results to read: set it to 1 or more")
        self.folder = Path(folder)
        self.keep = keep
        self.ranks = ranks or Ranks()
        self.protected: set[int] = set()

    def numbers(self) -> list[int]:
        """The numbers of the whole generations on disk, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit())

    def read(self, number: int | None = None, digest: str | None = None) -> Generation:
        """Opens a generation, the newest by default.

        Raises:
            InputError: there is none, it is not whole, or its digest is another one.
        """
        if number is None:
            numbers = self.numbers()
            if not numbers:
                raise InputError(f"{self.folder} holds no round results: no round has finished yet")
            number = numbers[-1]
        return Generation(_generation_folder(self.folder, number), digest)

    @contextmanager
    def write(
        self, number: int, settings: Mapping[str, Any] | None = None, made_by: str = ""
    ) -> Iterator[GenerationWriter]:
        """Writes generation ``number``; it becomes visible when the block is left without an error.

        All processes enter and leave together. A generation of the same number is replaced; newer
        ones (of a run that was killed and went back to a checkpoint) and surplus old ones go.

        Args:
            number: the round, counted from 1.
            settings: plain values that decide what the round produces; kept in the manifest.
            made_by: the step that writes, for the manifest.

        Raises:
            InputError: the disk is full, a sample was put twice, or another process failed.
        """
        final = _generation_folder(self.folder, number)
        partial = final.with_name(final.name + PARTIAL)
        first = self.ranks.rank == 0
        if first:
            with full_disk_in_words(final):
                self.folder.mkdir(parents=True, exist_ok=True)
                for leftover in self.folder.glob(f"*{PARTIAL}"):
                    shutil.rmtree(leftover, ignore_errors=True)
                partial.mkdir(exist_ok=True)
        self.ranks.gather(None)
        writer = GenerationWriter(partial, self.ranks.rank)
        try:
            try:
                yield writer
            finally:
                writer._close()
            answers = self.ranks.gather(writer._tables())
            discarded = any(told for _, told in answers)
            if first and not discarded:
                origin = {"round": number, "settings": dict(settings or {}), "made_by": made_by}
                with full_disk_in_words(final):
                    writer._finish([tables for tables, _ in answers], origin)
                    self._make_visible(partial, final)
        finally:
            if first:
                shutil.rmtree(partial, ignore_errors=True)
        self.ranks.gather(None)
        if not discarded:
            writer.committed = self.read(number)

    def _make_visible(self, partial: Path, final: Path) -> None:
        number = int(final.name)
        if final.exists():
            _remove_generation(final)
        partial.rename(final)
        flush_folder(self.folder)
        older = [other for other in self.numbers() if other <= number]
        kept = {*older[-self.keep :], *(self.protected & set(older))}
        for other in self.numbers():
            if other not in kept:
                _remove_generation(_generation_folder(self.folder, other))


def _remove_generation(folder: Path) -> None:
    """Out of sight in one step; what cannot be deleted yet is tried again by the next write."""
    leftover = folder.with_name(f"{folder.name}.removed{PARTIAL}")
    folder.rename(leftover)
    shutil.rmtree(leftover, ignore_errors=True)


def _generation_folder(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' cannot name a field: use letters, digits and underscores")


def _as_array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values, order="C")


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be noted down: use numbers, words and lists")


def _flat(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")


def _rows_in_order(rows: Sequence[np.ndarray], order: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of several (n_r, width) sources as if concatenated, in ``order``, some MB at a time."""
    starts = np.cumsum([0, *(len(source) for source in rows)])
    width = rows[0].shape[1]
    block = max(1, _BLOCK_BYTES // max(1, width * rows[0].itemsize))
    for first in range(0, len(order), block):
        wanted = order[first : first + block]
        chunk = np.empty((len(wanted), width), rows[0].dtype)
        for source, start in zip(rows, starts, strict=False):
            mine = (wanted >= start) & (wanted < start + len(source))
            chunk[mine] = source[wanted[mine] - start]
        yield chunk


def _arrays_in_order(
    sources: Sequence[np.ndarray], counts: Sequence[int], shapes: np.ndarray, order: np.ndarray
) -> Iterator[np.ndarray]:
    """Arrays of varying size from several flat sources as if concatenated, in ``order``."""
    sizes = np.prod(shapes, axis=1, dtype=np.int64)
    source_of = np.repeat(np.arange(len(sources)), counts)
    bounds = np.cumsum([0, *counts])
    spans = [sizes[first:last] for first, last in pairwise(bounds)]
    begins = np.concatenate([np.cumsum(span) - span for span in spans])
    for place in order:
        begin = begins[place]
        yield sources[source_of[place]][begin : begin + sizes[place]]


def _write_array(path: Path, dtype: np.dtype, shape: tuple[int, ...], chunks: Any) -> dict[str, Any]:
    """Writes an .npy file from chunks of its values; returns what the manifest says about it."""
    digest = hashlib.blake2b(digest_size=16)

    class Hashing:
        def write(self, data: Any) -> None:
            digest.update(data)
            stream.write(data)

    with open(path, "wb") as stream:
        out = Hashing()
        header = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(out, header)
        for chunk in chunks:
            out.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
        flush_to_disk(stream)
        size = stream.tell()
    return {
        "dtype": dtype.str,
        "shape": list(shape),
        "bytes": size,
        "blake2b": digest.hexdigest(),
    }


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
