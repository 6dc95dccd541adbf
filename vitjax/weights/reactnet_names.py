"""Names of ReActNet in liuzechun/ReActNet, both layouts and both steps, and of liuzechun/Bi-Real-net.

The network has the same parameters in both steps of training, here and there, but the release names them
differently: MobileNet's second step has the kernels of its binary convolutions as `weights`, flattened to
`[n, 1]`, the first as `weight`. Its own second step so begins with none of the first step's (issue 39 of that
repository); read by this table they are the same parameters. Bi-Real Net flattens its kernels as well.
"""

import collections
import functools
import re
from collections.abc import Callable, Collection, Mapping

import numpy as np

from vitjax.weights.stored import Stored
from vitjax.weights.tables import Move, moves
from vitjax.weights.timm_names import CONV, SAME, Layout, Table, linear, norm

BIAS = Layout(lambda array, _: [array.reshape(-1)], lambda arrays: arrays[0].reshape(1, -1, 1, 1))


def _batch_norm(theirs: str, ours: str) -> Table:
    return norm(theirs, ours) | {
        f"{theirs}.running_mean": (SAME, f"{ours}/mean"),
        f"{theirs}.running_var": (SAME, f"{ours}/var"),
    }


def _conv(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": (CONV, f"{ours}/kernel")}


def _shift(theirs: str, ours: str) -> Table:
    return {f"{theirs}.bias": (BIAS, ours)}


def _rprelu(block: str, parts: str, ours: str) -> Table:
    before, slope, after = parts.split()
    return {
        f"{block}.{before}.bias": (BIAS, f"{ours}/move1"),
        f"{block}.{slope}.weight": (SAME, f"{ours}/slope"),
        f"{block}.{after}.bias": (BIAS, f"{ours}/move2"),
    }


_FEATURE, _BLOCK = "feature.{i}", "block{i}"

MOBILENET: Table = {
    **_conv("feature.0.conv1", "conv_root"),
    **_batch_norm("feature.0.bn1", "bn_root"),
    **_shift(f"{_FEATURE}.move11", f"{_BLOCK}/conv3x3/move"),
    **_conv(f"{_FEATURE}.binary_3x3", f"{_BLOCK}/conv3x3"),
    **_batch_norm(f"{_FEATURE}.bn1", f"{_BLOCK}/bn1"),
    **_rprelu(_FEATURE, "move12 prelu1 move13", f"{_BLOCK}/rprelu1"),
    **_shift(f"{_FEATURE}.move21", f"{_BLOCK}/move2"),
    **_conv(f"{_FEATURE}.binary_pw", f"{_BLOCK}/conv1x1"),
    **_batch_norm(f"{_FEATURE}.bn2", f"{_BLOCK}/bn2"),
    **_conv(f"{_FEATURE}.binary_pw_down{{j}}", f"{_BLOCK}/conv1x1_{{j}}"),
    **_batch_norm(f"{_FEATURE}.bn2_{{j}}", f"{_BLOCK}/bn2_{{j}}"),
    **_rprelu(_FEATURE, "move22 prelu2 move23", f"{_BLOCK}/rprelu2"),
    **linear("fc", "head"),
}

_LAYER, _UNIT = "layer{i}.{j}", "block{i}/unit{j+1}"

RESNET: Table = {
    **_conv("conv1", "conv_root"),
    **_batch_norm("bn1", "bn_root"),
    **_shift(f"{_LAYER}.move0", f"{_UNIT}/conv/move"),
    **_conv(f"{_LAYER}.binary_conv", f"{_UNIT}/conv"),
    **_batch_norm(f"{_LAYER}.bn1", f"{_UNIT}/bn"),
    **_conv(f"{_LAYER}.downsample.1", f"{_UNIT}/conv_proj"),
    **_batch_norm(f"{_LAYER}.downsample.2", f"{_UNIT}/bn_proj"),
    **_rprelu(_LAYER, "move1 prelu move2", f"{_UNIT}/rprelu"),
    **linear("fc", "head"),
}

# Which norm follows a binary convolution, and so has as many channels as it has outputs; its kernel's side.
_NORM_AFTER = {
    "binary_3x3": ("bn1", 3),
    "binary_pw": ("bn2", 1),
    "binary_pw_down1": ("bn2_1", 1),
    "binary_pw_down2": ("bn2_2", 1),
    "binary_conv": ("bn1", 3),
}
_FLAT = re.compile(rf"(.*\.)({'|'.join(_NORM_AFTER)})\.weights")


def translate(
    table: Table, entries: Mapping[str, Stored], num_heads: Callable[[str], int]
) -> tuple[list[Move], list[str]]:
    """The moves by a table, for files of either step, and those names that it has no place for."""
    flat = {name: found for name in entries if (found := _FLAT.fullmatch(name))}
    found, unknown = moves(table, [name for name in entries if name not in flat], num_heads)
    kernels, others = moves(table, [name.removesuffix("s") for name in flat], num_heads)
    for kernel in kernels:
        name = f"{kernel.entry}s"
        found.append(Move(name, kernel.targets, _unflattened(*_outputs(flat[name], entries))))
    return found, unknown + [f"{name}s" for name in others]


def _outputs(name: re.Match[str], entries: Mapping[str, Stored]) -> tuple[int, int]:
    """The outputs of a flattened convolution, 0 if the file does not tell, and the side of its kernel."""
    norm_after, side = _NORM_AFTER[name[2]]
    scale = entries.get(f"{name[1]}{norm_after}.weight")
    return scale.shape[0] if scale and len(scale.shape) == 1 else 0, side


def _unflattened(outputs: int, side: int) -> Callable[[np.ndarray], list[np.ndarray]]:
    """From `[n, 1]`, in the order OIHW, to HWIO. ValueError: not a whole number of inputs."""

    def into(array: np.ndarray) -> list[np.ndarray]:
        if not outputs:
            raise ValueError("a kernel of no outputs")
        return [array.reshape(outputs, -1, side, side).transpose(2, 3, 1, 0)]

    return into


MOBILENET_KERNEL = r"feature\.\d+\.binary_(3x3|pw|pw_down\d)\.weights?"
RESNET_KERNEL = r"layer\d+\.\d+\.binary_conv\.weights?"


def is_mobilenet(names: Collection[str]) -> bool:
    """Whether these are the names of a released ReActNet-A, of either step."""
    return any(re.fullmatch(MOBILENET_KERNEL, name) for name in names)


def is_resnet(names: Collection[str]) -> bool:
    """Whether these are the names of a released ReAct-ResNet, of either step."""
    return is_bireal(names) and any(re.fullmatch(r"layer\d+\.\d+\.move0\.bias", name) for name in names)


def is_bireal(names: Collection[str]) -> bool:
    """Whether these are the names of a released Bi-Real Net, or of a ReAct-ResNet, which has more."""
    return any(re.fullmatch(RESNET_KERNEL, name) for name in names)


def step(names: Collection[str]) -> str:
    """What the names of a MobileNet layout's kernels say of the step that wrote them."""
    return f"MobileNet layout, step {2 if any(_FLAT.fullmatch(name) for name in names) else 1}"


def is_mobile(names: Collection[str]) -> bool:
    """Whether these are our names of a network in the MobileNet layout."""
    return any(re.fullmatch(r"block\d+/conv3x3/kernel", name) for name in names)


def layout(names: Collection[str]) -> str:
    """Which binary network it is that has these names of ours, and its depth; empty for any other network."""
    if is_mobile(names):
        blocks = sum(name.endswith("/conv3x3/kernel") for name in names)
        return f"ReActNet in the MobileNet layout, {blocks} blocks"
    units = [name for name in names if re.fullmatch(r"block\d+/unit\d+/conv/kernel", name)]
    if not units:
        return ""
    stages = collections.Counter(name.split("/")[0] for name in units)
    blocks = " + ".join(str(stages[stage]) for stage in sorted(stages))
    react = any(name.endswith("/conv/move") for name in names)
    return f"{'ReActNet in the ResNet layout' if react else 'Bi-Real Net'}, {blocks} blocks"


FROM_MOBILENET = functools.partial(translate, MOBILENET)
FROM_RESNET = functools.partial(translate, RESNET)
