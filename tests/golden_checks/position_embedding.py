"""Position embeddings resized as timm, official DeiT and scipy do it."""

import numpy as np

from golden_checks import checks
from vitjax.weights.position import METHODS, resize

# In float64 throughout, of values up to 3.3. Seen: at most 6.3e-15.
ERROR = 2e-14


def has_grids(config):
    cases = config.get("cases")
    return isinstance(cases, list) and all({"old", "new", "prefix"} <= set(case) for case in cases)


@checks(has_grids)
def check_resize(config, arrays):
    for i, case in enumerate(config["cases"]):
        posemb = arrays[f"{i}/input"].astype(np.float64)
        for method in METHODS:
            key = f"{i}/{'bilinear_corners' if method == 'corners' else method}"
            ours = resize(posemb, case["new"], prefix=case["prefix"], old_grid=case["old"], method=method)
            reference = arrays[key]
            assert ours.shape == reference.shape, f"{key} is {ours.shape}, not {reference.shape}"
            error = np.abs(ours - reference).max()
            assert error <= ERROR, f"{key} is off by {error:.1e}"
