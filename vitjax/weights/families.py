"""Whose file it is, told by the names in it, and what follows from that.

A family joins by one line in `FAMILIES`: how its names are recognised, the table that translates them, and
how its code resizes position embeddings.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vitjax.errors import UserError, nearest
from vitjax.weights import (
    binaryvit_names,
    efficientnet_pytorch_names,
    flax_names,
    huggingface_names,
    pit_names,
    reactnet_names,
    spt_lsa_names,
    swin_names,
    t2t_names,
    timm_cait_names,
    timm_cnn_names,
    timm_names,
)
from vitjax.weights.archive import CHECKPOINT
from vitjax.weights.stored import Archive, Stored, printable
from vitjax.weights.tables import Move, moves

# (arrays by name, num_heads) -> moves, and the names that have no place.
Translate = Callable[[Mapping[str, Stored], Callable[[str], int]], tuple[list[Move], list[str]]]


@dataclasses.dataclass(frozen=True)
class Family:
    """A naming, and the habits of the code base that it comes from."""

    name: str
    recognises: Callable[[Collection[str]], bool]
    translate: Translate
    posemb: str  # a method of `position.resize`
    detail: Callable[[Collection[str]], str] = lambda names: ""
    computed: Callable[[Mapping[str, Stored]], Collection[str]] = lambda entries: ()  # by the model itself
    wrapper: str = ""  # what its files keep all names under; empty for none, or whatever there is


def _by(table: timm_names.Table) -> Translate:
    return lambda names, num_heads: moves(table, names, num_heads)


def _pit(names: Mapping[str, Stored], num_heads: Callable[[str], int]) -> tuple[list[Move], list[str]]:
    """Distilled PiTs have another table, as both of their tokens are one array."""
    return moves(pit_names.table_of(names), names, num_heads)


def _embeds_patches(names: Collection[str]) -> bool:
    return any(name.startswith("patch_embed.") for name in names)


def _timm_cnn(network: str, first: str, table: timm_names.Table) -> Family:
    """timm's state dicts of one kind of network, told by the name of an array in its first unit."""
    recognises = lambda names: any(re.fullmatch(first, name) for name in names)
    return Family("timm", recognises, _by(table), "bicubic_aa", detail=lambda names: network)


_OFFICIAL = "facebookresearch/deit"
_SPT_LSA = "aanna0701/SPT_LSA_ViT"
_REACTNET = "liuzechun/ReActNet"

FAMILIES = (
    Family(
        "JAX",
        flax_names.is_flax,
        lambda names, num_heads: (flax_names.moves(names), []),
        "corners",
        flax_names.label,
    ),
    # Before Hugging Face, after whose ViT its modules are called; its teacher is one. No code of it resizes
    # positions.
    Family(
        "Phuoc-Hoan-Le/BinaryViT", binaryvit_names.is_binaryvit, _by(binaryvit_names.BINARYVIT), "bicubic"
    ),
    Family("Hugging Face", huggingface_names.is_huggingface, _by(huggingface_names.VIT), "bicubic"),
    Family(_SPT_LSA, swin_names.is_released, _by(swin_names.ALL), "bicubic"),
    Family("microsoft/Swin-Transformer", swin_names.is_official, _by(swin_names.ALL), "bicubic"),
    Family("timm", swin_names.is_swin, _by(swin_names.TIMM), "bicubic", detail=lambda names: "Swin"),
    # No code of PiT resizes positions; the methods are those of the official DeiT and of timm's ViT.
    Family("naver-ai/pit", pit_names.is_official, _pit, "bicubic"),
    Family("timm", pit_names.is_timm, _pit, "bicubic_aa", lambda names: "PiT"),
    # Official files have timm's names below `model`, and that code base has its own way to resize positions.
    Family(_OFFICIAL, timm_cait_names.is_cait, _by(timm_cait_names.CAIT), "bicubic", wrapper="model/"),
    Family(_OFFICIAL, _embeds_patches, _by(timm_cait_names.OFFICIAL_DEIT), "bicubic", wrapper="model/"),
    Family("timm", timm_cait_names.is_cait, _by(timm_cait_names.CAIT), "bicubic_aa"),
    # That code resizes no positions; the method is that of the official DeiT.
    Family(_SPT_LSA, spt_lsa_names.is_vit, _by(spt_lsa_names.VIT), "bicubic", lambda names: "ViT"),
    Family(_SPT_LSA, spt_lsa_names.is_cait, _by(spt_lsa_names.CAIT), "bicubic", lambda names: "CaiT"),
    Family(_SPT_LSA, pit_names.is_released, _by(pit_names.RELEASED), "bicubic", lambda names: "PiT"),
    Family(
        "efficientnet-pytorch",
        efficientnet_pytorch_names.is_efficientnet_pytorch,
        efficientnet_pytorch_names.translate,
        "bicubic",
    ),
    # Before the Vision Transformers, whose blocks are called `blocks` as well.
    Family(
        "yitu-opensource/T2T-ViT",
        t2t_names.is_t2t,
        _by(t2t_names.T2T),
        "bicubic",
        computed=t2t_names.computed,
    ),
    _timm_cnn("EfficientNet", r"blocks\.0\.0\.conv_dw\.weight", timm_cnn_names.EFFICIENTNET),
    Family(
        "timm",
        lambda names: any(re.match(r"patch_embed\.|blocks\.\d+\.", name) for name in names),
        _by(timm_names.ALL),
        "bicubic_aa",
    ),
    Family(
        _REACTNET,
        reactnet_names.is_mobilenet,
        reactnet_names.FROM_MOBILENET,
        "bicubic",
        reactnet_names.step,
    ),
    Family(
        _REACTNET,
        reactnet_names.is_resnet,
        reactnet_names.FROM_RESNET,
        "bicubic",
        lambda names: "ResNet layout",
    ),
    Family("liuzechun/Bi-Real-net", reactnet_names.is_bireal, reactnet_names.FROM_RESNET, "bicubic"),
    _timm_cnn("ResNet", r"layer1\.0\.conv1\.weight", timm_cnn_names.RESNET),
    _timm_cnn("RegNet", r"s1\.b1\.conv1\.conv\.weight", timm_cnn_names.REGNET),
    _timm_cnn("BiT ResNet", r"stages\.0\.blocks\.0\.norm1\.weight", timm_cnn_names.BIT),
)

# What a whole train state keeps its parameters under. The rest of such a file is no parameter.
_WRAPPERS = ("params/", "opt/target/", "model/", "state_dict/", "model_state_dict/")
# What PyTorch's modules keep beside the parameters and no model here has a use for: counters, and what
# Swin computes from its sizes.
BUFFERS = re.compile(r"(.*[./])?(num_batches_tracked|position_ids|relative_position_index|attn_mask)")


@dataclasses.dataclass(frozen=True)
class Weights:
    """The arrays of a file that are parameters, by the names that their family gives them."""

    family: Family
    entries: Mapping[str, Stored]
    notes: tuple[str, ...]

    @property
    def described(self) -> str:
        """Family, naming and where in the file."""
        detail = self.family.detail(self.entries)
        return f"{self.family.name} ({detail})" if detail else self.family.name


def recognise(archive: Archive, subtree: str) -> Weights:
    """Finds the parameters in an archive.

    Args:
      archive: an open file.
      subtree: `img` or `img/encoder`; empty for the whole file.

    Raises:
      UserError: no such subtree, or names of no known family.
    """
    entries, notes, around = archive.entries, [], ""
    for wrapper in _WRAPPERS:
        if inside := _below(entries, wrapper):
            around = wrapper
            if others := len(entries) - len(inside):
                notes.append(f"left out: {others} entries beside {wrapper!r}, which are no parameters")
            entries = inside
            break
    if subtree:
        whole, entries = entries, _below(entries, f"{subtree}/") or _below(archive.entries, f"{subtree}/")
        if not entries:
            raise UserError(
                f"{archive.path!r} has no sub-tree {subtree!r}.{nearest(subtree, _tops(whole))}"
                f" At its top are {_some(_tops(whole))}."
            )
        notes.append(f"sub-tree: {subtree}")
    if all(name.startswith("module.") for name in entries):  # PyTorch's data parallelism
        entries = {name.removeprefix("module."): stored for name, stored in entries.items()}
    if buffers := [name for name in entries if BUFFERS.fullmatch(name)]:
        notes.append(f"left out: {len(buffers)} buffers ({printable(buffers[0])})")
        entries = {name: stored for name, stored in entries.items() if name not in buffers}
    for family in FAMILIES:
        # The names of a run of one's own are those of its model, whatever that is.
        own = archive.kind == CHECKPOINT and family is FAMILIES[0]
        if own or (family.wrapper in ("", around) and family.recognises(entries)):
            if computed := family.computed(entries):
                notes.append(f"left out: {', '.join(computed)}, which the model computes")
                entries = {name: stored for name, stored in entries.items() if name not in computed}
            return Weights(family, entries, tuple(notes))
    inside = [
        top for top in _tops(entries) if any(f.recognises(_below(entries, f"{top}/")) for f in FAMILIES)
    ]
    if inside:
        raise UserError(
            f"{archive.path!r} holds several models, {_some(inside)}: name one as {archive.path}:{inside[0]}"
        )
    raise UserError(
        f"The names in {archive.path!r} are of no family known here"
        f" ({', '.join(dict.fromkeys(f.name for f in FAMILIES))}): {_some(list(entries))}."
    )


def _below(entries: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {n.removeprefix(prefix): stored for n, stored in entries.items() if n.startswith(prefix)}


def _tops(entries: Collection[str]) -> list[str]:
    return sorted({name.split("/")[0] for name in entries})


def _some(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more
