import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.mark.slow
def test_two_processes_measure_what_one_does():
    with socket.socket() as s:
        s.bind(("", 0))
        port = str(s.getsockname()[1])
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    command = [sys.executable, str(HERE / "one_of_two_processes.py")]
    workers = [
        subprocess.Popen([*command, str(i), port], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for i in range(2)
    ]
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert first == second
    *together, answers = first["4"]
    *alone, answers_alone = first["1"]
    assert [name for name, _ in together] == [name for name, _ in alone]
    assert [value for _, value in together] == pytest.approx([value for _, value in alone], rel=1e-5)
    assert answers == answers_alone and len(answers["_id"]) == 45
