"""timm's RandAugment: the argument and the result of each op, and whole chains by their traces."""

import numpy as np

from golden_checks import checks
from vitjax.data import timm_randaug

INTERPOLATING = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
# Of these, float32 may truncate to the value beside it. Seen: 1 in at most 0.14 % of an image's values.
SHARE = 0.005


@checks(lambda config: "levels" in config and "traces" in config)
def check_randaug(config, arrays):
    assert set(timm_randaug.INCREASING) == set(config["ops"])
    image, fill = arrays["image"], tuple(config["fill"])
    for level in config["levels"]:
        sign = -1 if level["negated"] else 1
        argument = timm_randaug.OPS[level["op"]].argument(level["magnitude"], sign)
        assert level["args"] == ([] if argument is None else [argument]), level
        result = timm_randaug.apply_op(level["op"], image, argument, fill)
        compare(result, arrays[level["key"]], level["op"] in INTERPOLATING, str(level))
    for trace in config["traces"]:
        result = image
        for op, magnitude, arguments in trace["ops"]:
            if magnitude is not None:
                argument = arguments[0] if arguments else None
                result = timm_randaug.apply_op(op, result, argument, fill)
        chain = {op for op, magnitude, _ in trace["ops"] if magnitude is not None}
        compare(result, arrays[f"seed{trace['seed']}"], bool(chain & INTERPOLATING), str(trace))


def compare(ours, reference, interpolating, what):
    difference = np.abs(ours.astype(int) - reference)
    assert difference.max() <= interpolating and (difference > 0).mean() <= SHARE, what
