"""Tables of numbers without a config, `numeric.npz`: what each part of the Transformer's recipe comes to."""

import re

from golden_checks import checks
from golden_checks.decoding import length_penalties
from golden_checks.transformer import check_positions
from golden_checks.translation import check_label_smoothing, check_noam

KNOWN = re.compile(r"pe_.*|noam_.*|lp_.*|ls\d+/.*")


@checks(lambda config: not config)
def check_tables(config, arrays):
    """Each part checks the keys that are its own, and there is none that nobody knows."""
    del config
    assert not [key for key in arrays if not KNOWN.fullmatch(key)]
    for check in (check_positions, check_noam, length_penalties, check_label_smoothing):
        check(arrays)
