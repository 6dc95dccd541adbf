"""EfficientNets in PyTorch files: timm's names, and those of the package efficientnet-pytorch."""

from vitjax.weights.timm_names import CONV, DENSE, SAME, Table


def _conv(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": (CONV, f"{ours}/kernel")}


def _conv_bias(theirs: str, ours: str) -> Table:
    return {**_conv(theirs, ours), f"{theirs}.bias": (SAME, f"{ours}/bias")}


def _batch_norm(theirs: str, ours: str) -> Table:
    return {
        f"{theirs}.weight": (SAME, f"{ours}/scale"),
        f"{theirs}.bias": (SAME, f"{ours}/bias"),
        f"{theirs}.running_mean": (SAME, f"{ours}/mean"),
        f"{theirs}.running_var": (SAME, f"{ours}/var"),
    }


def _linear(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": (DENSE, f"{ours}/kernel"), f"{theirs}.bias": (SAME, f"{ours}/bias")}


_THEIRS, _OURS = "blocks.{i}.{j}", "stage{i+1}/block{j+1}"

EFFICIENTNET: Table = {
    **_conv("conv_stem", "conv_stem"),
    **_batch_norm("bn1", "bn1"),
    **_conv(f"{_THEIRS}.conv_pw", f"{_OURS}/conv_pw"),
    **_batch_norm(f"{_THEIRS}.bn1", f"{_OURS}/bn1"),
    **_conv(f"{_THEIRS}.conv_dw", f"{_OURS}/conv_dw"),
    **_batch_norm(f"{_THEIRS}.bn2", f"{_OURS}/bn2"),
    **_conv_bias(f"{_THEIRS}.se.conv_reduce", f"{_OURS}/se/reduce"),
    **_conv_bias(f"{_THEIRS}.se.conv_expand", f"{_OURS}/se/expand"),
    **_conv(f"{_THEIRS}.conv_pwl", f"{_OURS}/conv_pwl"),
    **_batch_norm(f"{_THEIRS}.bn3", f"{_OURS}/bn3"),
    **_conv("conv_head", "conv_head"),
    **_batch_norm("bn2", "bn2"),
    **_linear("classifier", "head"),
}
