"""timm's EfficientNets: their state dicts, into our parameters and batch statistics."""

from vitjax.weights.timm_names import CONV, DENSE, SAME, Layout, Table


def _weight(layout: Layout, theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": (layout, f"{ours}/kernel")}


def _biased(layout: Layout, theirs: str, ours: str) -> Table:
    return {**_weight(layout, theirs, ours), f"{theirs}.bias": (SAME, f"{ours}/bias")}


def _batch_norm(theirs: str, ours: str) -> Table:
    return {
        f"{theirs}.weight": (SAME, f"{ours}/scale"),
        f"{theirs}.bias": (SAME, f"{ours}/bias"),
        f"{theirs}.running_mean": (SAME, f"{ours}/mean"),
        f"{theirs}.running_var": (SAME, f"{ours}/var"),
    }


_THEIRS, _OURS = "blocks.{i}.{j}", "block{i+1}/unit{j+1}"

EFFICIENTNET: Table = {
    **_weight(CONV, "conv_stem", "conv_root"),
    **_batch_norm("bn1", "bn_root"),
    **_weight(CONV, f"{_THEIRS}.conv_pw", f"{_OURS}/conv_pw"),
    **_batch_norm(f"{_THEIRS}.bn1", f"{_OURS}/bn1"),
    **_weight(CONV, f"{_THEIRS}.conv_dw", f"{_OURS}/conv_dw"),
    **_batch_norm(f"{_THEIRS}.bn2", f"{_OURS}/bn2"),
    **_biased(CONV, f"{_THEIRS}.se.conv_reduce", f"{_OURS}/se/reduce"),
    **_biased(CONV, f"{_THEIRS}.se.conv_expand", f"{_OURS}/se/expand"),
    **_weight(CONV, f"{_THEIRS}.conv_pwl", f"{_OURS}/conv_pwl"),
    **_batch_norm(f"{_THEIRS}.bn3", f"{_OURS}/bn3"),
    **_weight(CONV, "conv_head", "conv_top"),
    **_batch_norm("bn2", "bn_top"),
    **_biased(DENSE, "classifier", "head"),
}
