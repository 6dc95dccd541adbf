"""Every golden file, embedded or below `--goldens DIR`, held against the model its own config describes."""

import pathlib

import golden_checks
import pytest

EMBEDDED = pathlib.Path(__file__).parent / "goldens"


def pytest_generate_tests(metafunc):
    files = {f"embedded/{path.relative_to(EMBEDDED)}": path for path in sorted(EMBEDDED.rglob("*.npz"))}
    if given := metafunc.config.getoption("goldens"):
        found = {str(path.relative_to(given)): path for path in sorted(pathlib.Path(given).rglob("*.npz"))}
        if not found:
            raise pytest.UsageError(f"--goldens={given}: there is no .npz file below it")
        files |= found
    metafunc.parametrize("path", files.values(), ids=files.keys())


def test_golden(path):
    golden_checks.run(path)
