"""timm's ResNets, RegNets and BiT ResNets: their state dicts, into our parameters and batch statistics.

torchvision's ResNets have the same names.
"""

from collections.abc import Collection

from vitjax.weights.timm_names import CONV, DENSE, SAME, Layout, Table

# A classifier that is a 1x1 convolution: [K, D, 1, 1] and [D, K].
CONV_HEAD = Layout(
    lambda array, _: [array.reshape(len(array), -1).T],
    lambda arrays: arrays[0].T[:, :, None, None],
)


def _conv(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": (CONV, f"{ours}/kernel")}


def _norm(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": (SAME, f"{ours}/scale"), f"{theirs}.bias": (SAME, f"{ours}/bias")}


def _batch_norm(theirs: str, ours: str) -> Table:
    return {
        **_norm(theirs, ours),
        f"{theirs}.running_mean": (SAME, f"{ours}/mean"),
        f"{theirs}.running_var": (SAME, f"{ours}/var"),
    }


def _conv_bn(theirs: str, ours: str) -> Table:
    """A convolution and its norm, under one name of theirs; {} in `ours` stands for `conv` or `bn`."""
    conv, norm = ours.replace("{}", "conv"), ours.replace("{}", "bn")
    return {**_conv(f"{theirs}.conv", conv), **_batch_norm(f"{theirs}.bn", norm)}


def _biased(layout: Layout, theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": (layout, f"{ours}/kernel"), f"{theirs}.bias": (SAME, f"{ours}/bias")}


_LAYER, _UNIT = "layer{i}.{j}", "block{i}/unit{j+1}"

RESNET: Table = {
    **_conv("conv1", "conv_root"),
    **_batch_norm("bn1", "bn_root"),
    **{
        name: row
        for n in (1, 2, 3)
        for part in (
            _conv(f"{_LAYER}.conv{n}", f"{_UNIT}/conv{n}"),
            _batch_norm(f"{_LAYER}.bn{n}", f"{_UNIT}/bn{n}"),
        )
        for name, row in part.items()
    },
    **_conv(f"{_LAYER}.downsample.0", f"{_UNIT}/conv_proj"),
    **_batch_norm(f"{_LAYER}.downsample.1", f"{_UNIT}/bn_proj"),
    **_biased(DENSE, "fc", "head"),
}

_REG_BLOCK, _REG_UNIT = "s{i}.b{j}", "block{i}/unit{j}"

REGNET: Table = {
    **_conv_bn("stem", "{}_root"),
    **_conv_bn(f"{_REG_BLOCK}.conv1", f"{_REG_UNIT}/{{}}1"),
    **_conv_bn(f"{_REG_BLOCK}.conv2", f"{_REG_UNIT}/{{}}2"),
    **_biased(CONV, f"{_REG_BLOCK}.se.fc1", f"{_REG_UNIT}/se/reduce"),
    **_biased(CONV, f"{_REG_BLOCK}.se.fc2", f"{_REG_UNIT}/se/expand"),
    **_conv_bn(f"{_REG_BLOCK}.conv3", f"{_REG_UNIT}/{{}}3"),
    **_conv_bn(f"{_REG_BLOCK}.downsample", f"{_REG_UNIT}/{{}}_proj"),
    **_biased(DENSE, "head.fc", "head"),
}

_BIT_BLOCK, _BIT_UNIT = "stages.{i}.blocks.{j}", "block{i+1}/unit{j+1}"

BIT: Table = {
    **_conv("stem.conv", "conv_root"),
    **_conv(f"{_BIT_BLOCK}.downsample.conv", f"{_BIT_UNIT}/conv_proj"),
    **_norm(f"{_BIT_BLOCK}.norm1", f"{_BIT_UNIT}/gn1"),
    **_conv(f"{_BIT_BLOCK}.conv1", f"{_BIT_UNIT}/conv1"),
    **_norm(f"{_BIT_BLOCK}.norm2", f"{_BIT_UNIT}/gn2"),
    **_conv(f"{_BIT_BLOCK}.conv2", f"{_BIT_UNIT}/conv2"),
    **_norm(f"{_BIT_BLOCK}.norm3", f"{_BIT_UNIT}/gn3"),
    **_conv(f"{_BIT_BLOCK}.conv3", f"{_BIT_UNIT}/conv3"),
    **_norm("norm", "gn_final"),
    **_biased(CONV_HEAD, "head.fc", "head"),
}


def table_of(names: Collection[str]) -> Table | None:
    """The table by which timm names parameters of these names of ours; None: of none of these networks."""
    if "gn_final/scale" in names:
        return BIT
    if "bn_root/scale" not in names:
        return None
    return REGNET if any("/se/" in name for name in names) else RESNET
