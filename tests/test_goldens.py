"""Every golden file, embedded or below `--goldens DIR`, held against the model its own config describes.

Manifests are lists of names and shapes of full-size models.
"""

import pathlib

import golden_checks
import golden_checks.manifests
import pytest

EMBEDDED = pathlib.Path(__file__).parent / "goldens"


def pytest_generate_tests(metafunc):
    pattern = (
        "*.npz" if "golden" in metafunc.fixturenames else "manifests/[!_]*.json"
    )  # not the index of them
    files = {f"embedded/{path.relative_to(EMBEDDED)}": path for path in sorted(EMBEDDED.rglob(pattern))}
    if given := metafunc.config.getoption("goldens"):
        found = {str(path.relative_to(given)): path for path in sorted(pathlib.Path(given).rglob(pattern))}
        if not found and pattern == "*.npz":
            raise pytest.UsageError(f"--goldens={given}: there is no .npz file below it")
        files |= found
    metafunc.parametrize(metafunc.fixturenames[0], files.values(), ids=files.keys())


def test_golden(golden):
    golden_checks.run(golden)


def test_manifest(manifest):
    golden_checks.manifests.check(manifest)
