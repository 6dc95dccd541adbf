"""The one exception for mistakes that are the user's to mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A bad key, value, file or environment, told in one paragraph.

    The message names the key or file, the value found, and what would be right.
    `vitjax.main` prints it as `error: ...` and exits with code 2; nobody sees a
    stack trace for it.
    """


def nearest(word: str, valid: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the valid word closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


class TrainingFailed(Exception):
    """Training cannot go on: the loss or the gradient is not finite.

    The message names the step, the last good checkpoint and the examples. `vitjax.main` prints it and exits
    with code 3.
    """
