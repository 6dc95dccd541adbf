"""SIGTERM and ctrl-C end a run after the step, with its state saved; a second ctrl-C ends it at once."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from vitjax.preemption import Preempted

ROOT = pathlib.Path(__file__).parent.parent


def test_the_flag_and_the_handlers_come_and_go():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGINT):
        with Preempted() as preempted:
            assert not preempted(1)
            os.kill(os.getpid(), number)
            assert preempted(1) and preempted(2)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


LOOP = """
import itertools, sys, time, jax
from vitjax.preemption import Preempted
with Preempted() as preempted:
    if sys.argv[1:]:
        jax.distributed.initialize(f"localhost:{sys.argv[1]}", num_processes=1, process_id=0)
    for step in itertools.count():
        time.sleep(0.02)
        if preempted(step):
            break
        if step == 2:
            print("running", flush=True)
    if sys.argv[1:]:
        jax.distributed.shutdown()
print("saved", flush=True)
"""
STUBBORN = """
import time
from vitjax.preemption import Preempted
with Preempted():
    print("running", flush=True)
    while True:
        time.sleep(0.02)
"""


def start(code, *argv):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == "running\n"
    return process


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_run_ends_after_its_step(number, distributed):
    argv = []
    if distributed:
        with socket.socket() as s:
            s.bind(("", 0))
            argv = [str(s.getsockname()[1])]
    process = start(LOOP, *argv)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "saved\n", err
    assert ("Ctrl-C again leaves at once" in err) == (number == signal.SIGINT)


def test_the_second_ctrl_c_ends_at_once():
    process = start(STUBBORN)
    process.send_signal(signal.SIGINT)
    while "again" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
