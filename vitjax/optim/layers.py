"""Layer-wise decay of the learning rate: the deeper a parameter lies below the head, the slower it learns.

A Transformer of L blocks has L + 2 layers: what makes the tokens is layer 0, block i = 0, ..., L - 1 is layer
i + 1, and what follows the blocks (final norm, pooling, heads) is layer L + 1. Layer l has the factor
decay^(L + 1 - l), so that of the head is 1: the form of BEiT (arXiv 2106.08254) and MAE, and but for the
final norm that of timm 1.x, which has it in layer L. As there, it multiplies the learning rate and with it
AdamW's weight decay. CaiT's C blocks of class attention share the layers of the last C blocks, as in timm. In
a pyramid (PiT, Swin) blocks count through all stages, and a pooling is in the layer of the block after it.
"""

import re
from collections.abc import Mapping

from vitjax import errors

Shape = tuple[int, ...]

TOKENS = re.compile(r"(embedding|embedding_norm|conv_root|gn_root|block\d+)/.*|cls|dist|pos_embedding")
# The number is missing where the blocks are stacked, by `nn.scan`.
BLOCK = re.compile(r"(?:.*/)?encoderblock(?:_(\d+))?/.*")
IN_STAGE = re.compile(r"stage_(\d+)/encoderblock(?:_(\d+))?/.*")
POOLING = re.compile(r"pooling_(\d+)/.*")
CLASS_ATTENTION = re.compile(r"class_attention_(\d+)/.*")
AFTER = re.compile(r"(head|head_dist|pre_logits|fc_norm|MAPHead_0|(.*/)?encoder_norm)/.*")


def factors(shapes: Mapping[str, Shape], decay: float) -> dict[str, float | tuple[float, ...]]:
    """Returns the factor of each parameter: a number, or one for each block where blocks are stacked.

    Args:
      shapes: of all parameters, by their names `a/b/c`.
      decay: the factor from one layer to the one before, above 0 and up to 1.

    Raises:
      UserError: a value out of range, a model without blocks, or a parameter of no known layer.
    """
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay <= 1:
        raise errors.UserError(f"config.layer_decay={decay!r} must be above 0 and not above 1, such as 0.75.")
    depth, class_depth = _depth(shapes), _count(shapes, CLASS_ATTENTION)
    power = lambda layer: float(decay) ** (depth + 1 - layer)
    numbers = _numbers(shapes)
    found: dict[str, float | tuple[float, ...]] = {}
    for name in shapes:
        if block := IN_STAGE.fullmatch(name):
            stage, stacked = int(block[1]), block[2] is None
            each = range(shapes[name][0]) if stacked else (int(block[2]),)
            powers = tuple(power(numbers[stage, i] + 1) for i in each)
            found[name] = powers if stacked else powers[0]
        elif (pooling := POOLING.fullmatch(name)) and (after := (int(pooling[1]) + 1, 0)) in numbers:
            found[name] = power(numbers[after] + 1)
        elif block := BLOCK.fullmatch(name):
            each = tuple(power(i + 1) for i in range(depth))
            found[name] = each if block[1] is None else each[int(block[1])]
        elif block := CLASS_ATTENTION.fullmatch(name):
            found[name] = power(depth - class_depth + 1 + int(block[1]))
        elif TOKENS.fullmatch(name):
            found[name] = power(0)
        elif AFTER.fullmatch(name):
            found[name] = 1.0
        else:
            raise errors.UserError(
                f"config.layer_decay: it is not known in which layer {name!r} lies. Leave layer_decay out,"
                " and give factors by name in config.lr_mults."
            )
    return found


def _count(shapes: Mapping[str, Shape], numbered: re.Pattern[str]) -> int:
    """How many blocks there are of those whose number the pattern finds."""
    return len({block[1] for name in shapes if (block := numbered.fullmatch(name))})


def _numbers(shapes: Mapping[str, Shape]) -> dict[tuple[int, int], int]:
    """The number that each block of a stage has among those of all stages, by (stage, block)."""
    blocks = set()
    for name, shape in shapes.items():
        if m := IN_STAGE.fullmatch(name):
            blocks |= {(int(m[1]), i) for i in (range(shape[0]) if m[2] is None else (int(m[2]),))}
    return {block: number for number, block in enumerate(sorted(blocks))}


def _depth(shapes: Mapping[str, Shape]) -> int:
    """The number of blocks."""
    if in_stages := _numbers(shapes):
        return len(in_stages)
    stacked = [shape[0] for name, shape in shapes.items() if (m := BLOCK.fullmatch(name)) and m[1] is None]
    depth = stacked[0] if stacked else _count(shapes, BLOCK)
    if not depth:
        raise errors.UserError(
            "config.layer_decay: the model has no Transformer blocks, parameters called 'encoderblock_0/...';"
            f" its own are called like {next(iter(shapes), 'nothing')!r}. Leave layer_decay out, and give"
            " factors by name in config.lr_mults."
        )
    return depth
