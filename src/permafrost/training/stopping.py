"""Signals that ask a run to end: the step is finished and saved first; who asks a second time does not wait."""

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

REQUEUE = getattr(signal, "SIGUSR1", None)  # what SLURM is told to send ahead of the end: sbatch --signal=USR1@120


class Stopped(SystemExit):
    """Ends the program with 128 + the signal's number, its state saved."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number if signal_number else 0)


class StopRequests:
    """Notes a signal for the training loop to act on between two steps."""

    def __init__(self, *, requeue: bool = False) -> None:
        self.wanted = [signal.SIGTERM, signal.SIGINT] + ([REQUEUE] if requeue and REQUEUE else [])
        self.received = 0  # the signal's number
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Only in a process's main thread, where Python takes signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.wanted}

    def stop_listening(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise Stopped(number)
        if not self.received:
            again = "; once more stops at once" if number == signal.SIGINT else ""
            line = f"{signal.Signals(number).name}: this step is finished and saved first{again}\n"
            os.write(2, line.encode())  # print would fail where the signal came within a print
        self.received = self.received or number


def requeue_at_signal(*, is_first: bool) -> None:
    """Outside of training, where there is no step to finish: the job starts again with its last checkpoint."""

    owner = os.getpid()

    def now(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a loader's worker, which inherits this
            return
        if is_first:
            os.write(2, f"{requeue_job()}\n".encode())  # print would fail where the signal came within a print
        raise Stopped(number)

    if REQUEUE and threading.current_thread() is threading.main_thread():
        signal.signal(REQUEUE, now)


def requeue_job() -> str:
    """Ask SLURM to start this job again; gives what to tell the user. Outside of SLURM there is nothing to ask."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return "no SLURM job to requeue"
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"job {job} is not requeued: there is no scontrol here"
    return f"job {job} is requeued" if done.returncode == 0 else f"job {job} is not requeued: {done.stderr.strip()}"
