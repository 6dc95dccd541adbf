"""What a run ran on: code revision, versions, devices, command line. Kept in `WORKDIR/run.json`."""

import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import vitjax
from vitjax import files

RUN_FILE = "run.json"

# Those that can change a number of a run; plugins and drivers are listed only where they are installed.
_DISTRIBUTIONS = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "ml_collections",
    "opencv-python-headless",
    "simplejpeg",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "libtpu",
)


def run_info() -> dict[str, Any]:
    """Collects what is to be known about this process. Starts the jax backend; names no host, user or path.

    Returns: a dict for JSON with
      versions: {"python", "vitjax", "jax", ...: version};
      devices: [{"platform": "gpu", "kind": "NVIDIA H200", "count": 8}, ...] over all processes;
      processes: number of jax processes;
      git: {"revision": 40 hex digits, "dirty": bool} of the checkout that vitjax is imported from, else None;
      command: the command line, with the script's folders left out;
      started: time in UTC, ISO 8601.
    """
    import jax

    counts: dict[tuple[str, str], int] = {}
    for device in jax.devices():
        key = (device.platform, device.device_kind)
        counts[key] = counts.get(key, 0) + 1
    return {
        "versions": versions(),
        "devices": [{"platform": p, "kind": kind, "count": n} for (p, kind), n in counts.items()],
        "processes": jax.process_count(),
        "git": git_revision(),
        "command": command_line(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@functools.cache  # a process keeps the code that it has imported, and a sweep asks for every trial
def versions() -> dict[str, str]:
    """Versions of Python, vitjax and the installed distributions that can change a number of a run."""
    found = {"python": platform.python_version(), "vitjax": vitjax.__version__}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_revision() -> dict[str, Any] | None:
    """Revision of the checkout that vitjax is imported from, and whether it was changed since; else None."""
    package = pathlib.Path(vitjax.__file__).parent

    def git(*args: str) -> str:
        command = ["git", "-C", os.fspath(package), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # Installed into an environment that lies inside some other repository, vitjax is not tracked there.
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def command_line() -> str:
    """The command line of this process, quoted for a shell: `python -m vitjax.main --config=...`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    script = ["-m", spec.name.removesuffix(".__main__")] if spec else [os.path.basename(sys.argv[0])]
    return shlex.join(["python", *script, *sys.argv[1:]])


def write_run_info(workdir: str | os.PathLike, info: dict[str, Any]) -> None:
    """Writes `info` (what `run_info` returned, plus what the report page reads) to `WORKDIR/run.json`.

    The report page also reads `wall_time` (`WallTime.split()`), `total_steps` and `batch_size`. Over resumes,
    `started` stays that of the first start. Raises UserError where it cannot be written.
    """
    started = read_run_info(workdir).get("started", info.get("started"))
    text = json.dumps(info | ({"started": started} if started else {}), indent=1)
    files.replace(files.folder(workdir) / RUN_FILE, text + "\n")


def read_run_info(workdir: str | os.PathLike) -> dict[str, Any]:
    """What `write_run_info` wrote; {} where there is none or it cannot be read."""
    try:
        info = json.loads((pathlib.Path(workdir) / RUN_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}
