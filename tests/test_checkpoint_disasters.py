"""Checkpoints against a full disk, kill -9 and two processes: real ones, in processes of their own."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.checkpoint import Checkpointer

ROOT = pathlib.Path(__file__).parent.parent
PRELUDE = """
import os, sys, time, json, resource
import jax, jax.numpy as jnp, numpy as np
from vitjax.checkpoint import Checkpointer
from vitjax.errors import UserError
directory = sys.argv[1]
def numbers(step, rows):  # random, so they do not compress: 4 kB a row
    return np.random.default_rng(step).random((rows, 1024), np.float32)
def state(step, rows=1024):
    return {"x": jnp.asarray(numbers(step, rows)), "step": jnp.int32(step)}
wanted = {"x": jax.ShapeDtypeStruct((8192, 1024), jnp.float32), "step": jax.ShapeDtypeStruct((), jnp.int32)}
"""


def start(code, *argv, **env):
    code = PRELUDE + textwrap.dedent(code)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **env}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv)],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out, err


def restore(directory, rows=1024):
    with Checkpointer(directory, fingerprint={}) as c:
        return c.restore({"x": jnp.zeros((rows, 1024)), "step": jnp.int32(0)}), c.steps()


FILL = """
with Checkpointer(directory, fingerprint={}) as c:
    c.save(1, state(1, 128))
    c.wait()
    limit()
    c.save(2, state(2, 4096))
    for _ in range(2):                 # it is told once, and the run may go on if it wants to
        try:
            c.wait()
            print("nothing to tell")
        except UserError as e:
            print(str(e))
    print(os.listdir(directory))
    try:
        c.save(3, state(3, 4096)); c.save(4, state(4, 4096))
    except UserError as e:
        print(str(e))
    c.save(5, state(5, 128)); c.wait()
    print(os.listdir(directory))
"""


def check_full_disk(out, directory):
    first, nothing, after, second, last = out.splitlines()
    for step, text in ((2, first), (3, second)):
        assert f"Cannot save the checkpoint of step {step} to {directory}/{step}: " in text
        assert "MB are free there; step 1 is the last good one" in text and len(text) < 1000
    assert nothing == "nothing to tell"
    assert after == "['1']" and last == "['5']"


def test_a_write_that_fails(tmp_path):
    limit = "def limit(): resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))"
    out, _ = finish(start(limit + FILL, tmp_path / "ckpt"))
    check_full_disk(out, tmp_path / "ckpt")
    (step, state), steps = restore(tmp_path / "ckpt", 128)
    assert step == 5 and state["step"] == 5 and steps == [5]


def test_a_full_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        out, _ = finish(start("def limit(): pass\n" + FILL, tmp_path / "ckpt"))
        check_full_disk(out, tmp_path / "ckpt")
        assert "No space left" in out
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_kill_9_while_saving(tmp_path):
    """Killed at once and when the new one has just been committed: there is always a whole one."""
    code = """
    c = Checkpointer(directory, fingerprint={})
    found = c.restore(wanted)
    step = found[0] if found else 0
    if not found:
        c.save(1, state(1, 8192)); c.wait(); step = 1
    now = state(step + 1, 8192)
    c.save(step + 1, now)
    print("saving", step + 1, flush=True)
    time.sleep(60)
    """
    directory, seen = tmp_path / "ckpt", set()
    for delay in (0.02, None):
        process = start(code, directory)
        step = int(process.stdout.readline().split()[1])
        if delay is None:
            while not (directory / str(step)).is_dir():
                time.sleep(0.001)
        else:
            time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        left = sorted(p.name for p in directory.iterdir())
        (found, state), steps = restore(directory, 8192)
        assert found in (step - 1, step) and state["step"] == found
        assert (state["x"] == np.random.default_rng(found).random((8192, 1024), np.float32)).all()
        assert sorted(p.name for p in directory.iterdir()) == sorted(map(str, steps)), left  # swept
        seen.add(any("tmp" in name for name in left))
    assert seen == {True, False}


def test_two_processes_save_restore_and_fall_back_together(tmp_path):
    code = """
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    port, index = sys.argv[2:]
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(index))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    shardings = {"x": NamedSharding(mesh, P("data")), "step": NamedSharding(mesh, P())}
    put = lambda x, s: jax.make_array_from_callback(x.shape, s, lambda where: np.asarray(x)[where])
    wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), wanted, shardings)
    told = []
    with Checkpointer(directory, fingerprint={}, keep_last=2, warn=told.append) as c:
        for step in (1, 2, 3):
            c.save(step, jax.tree.map(put, state(step, 8192), shardings))
        c.wait()
        steps = c.steps()
        if index == "0":
            for file in (c.directory / "3/state/ocdbt.process_1/d").iterdir():
                data = file.read_bytes()
                file.write_bytes(data[: len(data) // 2])
        jax.experimental.multihost_utils.sync_global_devices("damaged")
        step, found = c.restore(wanted)
        shards = found["x"].addressable_shards
        same = all((np.asarray(s.data) == numbers(2, 8192)[s.index]).all() for s in shards)
        c.save(3, found)
        c.wait()
        print(json.dumps([steps, step, bool(same), told, c.steps(), sorted(os.listdir(directory))]))
    jax.distributed.shutdown()
    """
    with socket.socket() as s:
        s.bind(("", 0))
        port = s.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=2"
    processes = [start(code, tmp_path / "ckpt", port, i, XLA_FLAGS=flags) for i in range(2)]
    for process in processes:
        steps, step, same, told, after, names = json.loads(finish(process)[0].splitlines()[-1])
        assert steps == [2, 3] and step == 2 and same and after == [2, 3] and names == ["2", "3", "damaged-3"]
        seen = "by another process)" if process is processes[0] else "Requested byte range"
        assert (
            len(told) == 1
            and "leaf x cannot be read (" in told[0]
            and seen in told[0]
            and told[0].endswith("/damaged-3.")
        )
