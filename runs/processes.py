"""Starts the processes of a distributed run, each with the job's own resolved config.

Lightning starts extra ranks with the parent's command line; under a sweep that line starts the
whole sweep again. Here every rank is `python -m runs.rank <run folder>`: it reads the config that
the job wrote there, and the job itself stays free of process groups, so that the next job of the
sweep starts clean.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

GRACE_SECONDS = 5.0  # for the other ranks to end on their own once one has failed
SPOKEN_EXIT_CODES = (2, 130, 143)  # an input error, Ctrl-C, SIGTERM: the rank has said so itself
EXTERNAL_RANK_VARIABLES = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID")


def processes_to_start(trainer: Mapping[str, Any]) -> int:
    """How many processes this job has to start itself: 0 if it needs none or a launcher did it."""
    distributed = any(word in str(trainer.get("strategy")) for word in ("ddp", "fsdp", "deepspeed"))
    if not distributed or is_external_rank():
        return 0
    devices = trainer.get("devices", 1)
    if isinstance(devices, list):
        count = len(devices)
    elif devices in ("auto", -1, "-1"):
        import torch

        count = torch.cuda.device_count() if trainer.get("accelerator") != "cpu" else 1
    else:
        count = int(devices)
    return count if count > 1 else 0


def is_external_rank() -> bool:
    """Whether torchrun, SLURM or this module started this process as one rank of several."""
    started_by_slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    return started_by_slurm or any(name in os.environ for name in EXTERNAL_RANK_VARIABLES)


def global_rank() -> int:
    """This process's rank, 0 when it is the only one."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ and is_external_rank():
            return int(os.environ[name])
    return 0


def run_ranks(run_dir: Path, count: int) -> None:
    """Runs the job in `count` processes and waits for them.

    Raises:
        SystemExit: with the code of the rank that failed first; it has said why itself.
    """
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "NODE_RANK": "0",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP's advice on unused weights: some phases do have them
        # Every rank of one machine would otherwise start a thread for each of its cores.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count))),
    }
    ranks: list[subprocess.Popen[bytes]] = []
    logs = [run_dir / f"rank_{rank}.log" for rank in range(count)]
    try:
        with _forwarded_signals(ranks):
            for rank in range(count):
                output = None if rank == 0 else logs[rank].open("ab")
                ranks.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "runs.rank", str(run_dir)],
                        env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        cwd=os.getcwd(),
                        stdin=subprocess.PIPE,  # its end tells a rank that this process is gone
                        stdout=output,
                        stderr=output,
                        start_new_session=True,  # the terminal's Ctrl-C reaches this process only
                    )
                )
            failed = _wait(ranks)
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
    if failed is None:
        return
    if failed != 0:
        sys.stderr.write("".join(logs[failed].read_text(errors="replace").splitlines(keepends=True)[-30:]))
    code = ranks[failed].returncode
    raise SystemExit(code if code > 0 else 128 - code)  # as a shell counts a death by signal


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Waits for all; returns the rank whose failure to report, None if all went well.

    That is the rank that failed first, because the others then fail for its sake; but rank 0
    whenever it ended with a sentence of its own.
    """
    first, deadline = None, float("inf")
    while any(process.poll() is None for process in ranks) and time.monotonic() < deadline:
        if first is None:
            first = next((rank for rank, process in enumerate(ranks) if process.poll()), None)
            deadline = time.monotonic() + GRACE_SECONDS if first is not None else deadline
        time.sleep(0.02)
    if ranks[0].poll() in SPOKEN_EXIT_CODES:
        return 0
    return first if first is not None else next((r for r, process in enumerate(ranks) if process.poll()), None)


@contextmanager
def _forwarded_signals(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    def forward(signum: int, frame: FrameType | None) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signum)

    previous = {signum: signal.signal(signum, forward) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
