"""Every golden file, embedded or below `--goldens DIR`, held against the model its own config describes.

Manifests are lists of names and shapes of full-size models.
"""

import pathlib

import golden_checks
import golden_checks.manifests
import pytest

EMBEDDED = pathlib.Path(__file__).parent / "goldens"


def golden_files(folder):
    """Vectors and tables, but for what stands in a folder `manifests`."""
    found = [*folder.rglob("*.npz"), *folder.rglob("*.json")]
    return [path for path in found if path.parent.name != "manifests"]


def manifest_files(folder):
    return list(folder.rglob("manifests/[!_]*.json"))  # not the index of them


def pytest_generate_tests(metafunc):
    files_below = golden_files if "golden" in metafunc.fixturenames else manifest_files
    files = {f"embedded/{path.relative_to(EMBEDDED)}": path for path in sorted(files_below(EMBEDDED))}
    if given := metafunc.config.getoption("goldens"):
        found = {str(path.relative_to(given)): path for path in sorted(files_below(pathlib.Path(given)))}
        if not found and files_below is golden_files:
            raise pytest.UsageError(f"--goldens={given}: there is no .npz or .json file below it")
        files |= found
    metafunc.parametrize(metafunc.fixturenames[0], files.values(), ids=files.keys())


def test_golden(golden):
    golden_checks.run(golden)


def test_manifest(manifest):
    golden_checks.manifests.check(manifest)
