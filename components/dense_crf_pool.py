"""Dense CRFs of many images, in order, on several processor cores."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import NamedTuple, Self

import numpy as np
import torch

from components.dense_crf import CRFSettings, DenseCRF, label_unary
from runs.errors import InputError

IN_FLIGHT = 4  # jobs for each process that wait or are done, so that images do not pile up in memory


class CRFJob(NamedTuple):
    """Label maps of one image to be refined.

    Attributes:
        image: (H, W, 3) uint8, colours 0..255.
        labels: (K, H, W) integers 0..n-1, uint8 is least to hand over; the K maps share one lattice.
        n: number of labels that can occur, 1 + the true classes; 1 leaves the maps as they are.
        settings: of the CRF; None leaves the maps as they are.
    """

    image: np.ndarray
    labels: np.ndarray
    n: int
    settings: CRFSettings | None


def refine(job: CRFJob) -> np.ndarray:
    """The job's refined label maps, (K, H, W) uint8."""
    if job.n == 1 or job.settings is None:
        return job.labels.astype(np.uint8)
    crf = DenseCRF(torch.from_numpy(np.ascontiguousarray(job.image)), job.settings)
    given = torch.from_numpy(job.labels.astype(np.int64))
    refined = [crf(label_unary(labels, job.n, job.settings.confidence)).argmax(0) for labels in given]
    return torch.stack(refined).to(torch.uint8).numpy()


class CRFPool:
    """Runs CRFs in processes of their own, each on one thread; to be used by ``with``.

    The processes are spawned, which costs each some seconds at its first job; nothing is started
    where no job comes.

    Args:
        processes: how many; 0 does the work in the calling process.

    Raises:
        InputError: fewer than 0 processes.
    """

    def __init__(self, processes: int) -> None:
        if processes < 0:
            raise InputError(f"{processes} CRF processes: give 0 (none of their own) or more")
        self.processes = processes
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.processes:
            self._executor = ProcessPoolExecutor(
                self.processes, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def refine_many(self, jobs: Iterable[CRFJob]) -> Iterator[np.ndarray]:
        """The result of `refine` for each job, in order; jobs are drawn as there is room for them.

        Raises:
            InputError: of a job, or a process was ended from outside.
        """
        if self._executor is None:
            yield from map(refine, jobs)
            return
        waiting: deque[Future[np.ndarray]] = deque()
        try:
            for job in jobs:
                waiting.append(self._executor.submit(refine, job))
                if len(waiting) == IN_FLIGHT * self.processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                f"one of {self.processes} CRF processes was ended from outside, for lack of memory as a rule: "
                "give fewer processes"
            ) from error
