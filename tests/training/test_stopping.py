"""Signals are noted for the loop, and a second SIGINT does not wait."""

import os
import signal
import stat

import pytest

from permafrost.training.stopping import Stopped, StopRequests, requeue_at_signal, requeue_job


@pytest.fixture
def requests():
    requests = StopRequests(requeue=True)
    requests.listen()
    yield requests
    requests.stop_listening()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_is_noted(requests, name, capfd):
    os.kill(os.getpid(), getattr(signal, name))
    assert requests.received == getattr(signal, name)
    assert f"{name}: this step is finished and saved first" in capfd.readouterr().err


def test_the_first_signal_counts(requests):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert requests.received == signal.SIGTERM


def test_a_second_sigint_stops_at_once(requests):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), signal.SIGINT)
    assert stopped.value.code == 130


def test_handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    requests = StopRequests()
    requests.listen()
    assert signal.getsignal(signal.SIGUSR1) == before[signal.SIGUSR1]
    requests.stop_listening()
    assert {number: signal.getsignal(number) for number in before} == before


def test_outside_of_training_the_job_starts_again_at_once(monkeypatch, capfd):
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    try:
        requeue_at_signal(is_first=True)
        training = StopRequests(requeue=True)
        training.listen()
        os.kill(os.getpid(), signal.SIGUSR1)  # while it trains it is noted
        training.stop_listening()
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert stopped.value.code == 128 + signal.SIGUSR1
        assert capfd.readouterr().err.endswith("no SLURM job to requeue\n")
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    ("job", "asked"),
    [
        ({"SLURM_JOB_ID": "12"}, "requeue 12"),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 12_3"),
    ],
)
def test_slurm_is_asked_for_the_job_again(job, asked, monkeypatch, tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert requeue_job() == f"job {asked.split()[1]} is requeued"
    assert (tmp_path / "asked").read_text().strip() == asked


def test_outside_of_slurm_nothing_is_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert requeue_job() == "no SLURM job to requeue"
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert requeue_job() == "job 1 is not requeued: there is no scontrol here"
