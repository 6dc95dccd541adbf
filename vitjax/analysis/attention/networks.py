"""Trained models to look into: a run of one's own, or any model with weights of a file."""

import ast
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitjax import models, weights
from vitjax.data import pp, value_scale
from vitjax.errors import UserError
from vitjax.teachers import workdir
from vitjax.weights import variables as variables_lib
from vitjax.weights.loading import locate


@dataclasses.dataclass(frozen=True)
class Described:
    """A model before its images are known.

    Attributes:
      label: its name on the page.
      model: its registered name and fields.
      weights: where its numbers are, as `weights.load` takes it.
      num_classes: of its head; None: as the weights have it.
      pp: preprocessing of evaluation.
      data: the data that it was evaluated on, `data:SPLIT` on the command line; None where nothing says it.
    """

    label: str
    model: Mapping[str, Any]
    weights: str
    num_classes: int | None
    pp: str
    data: str | None


@dataclasses.dataclass(frozen=True)
class Network:
    """A model with its numbers.

    Attributes:
      label: its name on the page.
      model: the module.
      variables: its parameters and batch statistics.
      images: float [K, H, W, C], as the model takes them.
      pictures: uint8 [K, H, W, 3], the same before normalisation.
    """

    label: str
    model: nn.Module
    variables: dict[str, Any]
    images: np.ndarray
    pictures: np.ndarray


def of_workdir(source: str, own_pp: str | None = None) -> Described:
    """Reads what a run says of its model: the newest checkpoint's, `WORKDIR:ema_params` its averages.

    Images are prepared as for the first evaluator of its config that has a preprocessing string.

    Raises:
      UserError: it is no run with checkpoints, or nothing says how images are prepared.
    """
    trained = workdir.read(source)
    if trained is None:
        raise UserError(
            f"--workdir {source!r} is not the folder of a run with a checkpoint: it has no config.json "
            "beside a folder 'checkpoints'. Train it until the first checkpoint, or name --model and "
            "--weights."
        )
    path, _ = locate(source)
    folder = next(p for p in (path, *path.parents) if (p / "config.json").is_file())
    config = json.loads((folder / "config.json").read_text())
    evals = [section for section in (config.get("evals") or {}).values() if section.get("pp")]
    chosen = evals[0] if evals else {}
    text = own_pp or chosen.get("pp")
    if not text:
        raise UserError(
            f"{str(folder / 'config.json')!r} has no evaluator that says how images are prepared: say it "
            "with --pp 'decode|...|value_range(-1, 1)'."
        )
    label = folder.resolve().name + source.removeprefix(str(path))
    data = chosen.get("data") or config["input"].get("data")
    return Described(label, trained.model, source, trained.num_classes, text, data)


def of_file(model: str, source: str, text: str | None) -> Described:
    """A registered model, `vit_b16` or `vit_b16,pool='gap'`, with the weights of a file.

    Raises:
      UserError: fields cannot be read, or nothing says how images are prepared.
    """
    if not text:
        raise UserError(
            "--model needs --pp, since weights do not say how images are prepared for them, such as "
            "--pp 'decode|resize_small(256)|central_crop(224)|value_range(-1, 1)'."
        )
    return Described(model, _fields(model), source, None, text, None)


def _fields(text: str) -> dict[str, Any]:
    name, _, rest = text.partition(",")
    try:
        call = ast.parse(f"f({rest})", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        fields = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise UserError(
            f"--model {text!r} cannot be read: write NAME, or NAME,FIELD=VALUE,... such as "
            "vit_b16,pool='gap'."
        ) from None
    return {"name": name, **fields}


def load(described: Described, examples: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Network:
    """Prepares the images, makes the model for them and reads its numbers.

    Args:
      described: the model.
      examples: `{"image": bytes or uint8 array, "label": int}` each.
      names: of the examples, for messages.
    """
    num_classes = described.num_classes
    preprocess = pp.parse(described.pp.replace("{num_classes}", str(num_classes or 1000)))
    images = prepare(preprocess, examples, names)
    model = _model(described.model, num_classes)
    if described.num_classes is None:
        model = _model(described.model, _classes_there(described, model, images))
    abstract = _abstract(model, images)
    params, state = abstract["params"], {key: tree for key, tree in abstract.items() if key != "params"}
    joined = variables_lib.join(params, state)
    loaded = weights.load(described.weights, joined, grid=_grid(model, abstract, images))
    params, state = variables_lib.split(loaded.params, state)
    pictures = as_pictures(images, value_scale.after(preprocess))
    return Network(described.label, model, {"params": params, **state}, images, pictures)


def _model(section: Mapping[str, Any], num_classes: int | None) -> nn.Module:
    fields = {key: value for key, value in section.items() if key != "name"}
    return models.create(section["name"], num_classes=num_classes, **fields)


def _abstract(model: nn.Module, images: np.ndarray) -> dict[str, Any]:
    return dict(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *images.shape[1:]))))


def _classes_there(described: Described, model: nn.Module, images: np.ndarray) -> int | None:
    """The size of the head in a file; None without one."""
    headed = _model(described.model, 1)
    there = weights.shapes(described.weights, _abstract(headed, images)["params"])
    sizes = [shape[-1] for name, shape in there.items() if name.startswith("head") and len(shape) == 1]
    return sizes[0] if sizes else None


def _grid(model: nn.Module, variables: Any, images: np.ndarray) -> tuple[int, int] | None:
    """(height, width) of the grid of patches, None where the model has none."""
    stem = jax.eval_shape(
        lambda variables, image: model.apply(variables, image, train=False)[1].get("stem"),
        variables,
        jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32),
    )
    return None if stem is None else stem.shape[1:3]


def prepare(
    preprocess: pp.Preprocess, examples: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> np.ndarray:
    """The images as the model takes them, float32 [K, H, W, C].

    Raises:
      UserError: one cannot be decoded, or they differ in size.
    """
    rows = []
    for example, name in zip(examples, names, strict=True):
        try:
            rows.append(preprocess.host(dict(example), np.random.default_rng(0)))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    shapes = {np.shape(row.get("image")) for row in rows}
    if len(shapes) > 1:
        raise UserError(
            f"preprocessing leaves images of {len(shapes)} sizes, such as "
            f"{' and '.join(map(str, sorted(shapes)[:2]))}: give --pp with a crop to one size."
        )
    keys = [key for key in rows[0] if not key.startswith("_")]
    batch = {key: np.stack([np.asarray(row[key]) for row in rows]) for key in keys}
    batch = preprocess.device({k: v for k, v in batch.items() if v.dtype.kind in "uifb"}, jax.random.key(0))
    images = np.asarray(batch["image"])
    if images.ndim != 4 or images.dtype.kind != "f":
        raise UserError(
            f"preprocessing leaves images as {images.dtype} {list(images.shape[1:])}, a model takes float "
            "[height, width, channels]: --pp must decode and end with a value range, 'value_range(-1, 1)'."
        )
    return images.astype(np.float32)


def as_pictures(images: np.ndarray, scale: value_scale.Scale | None) -> np.ndarray:
    """What the model sees, uint8 [K, H, W, 3]; by the extremes of each image where its scale is not known."""
    if scale is None:
        low, high = images.min((1, 2, 3), keepdims=True), images.max((1, 2, 3), keepdims=True)
        pixels = 255 * (images - low) / np.maximum(high - low, 1e-12)
    else:
        pixels = (images.astype(np.float64) - scale.offset) / scale.factor
    pixels = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]


def folder_of(described: Described) -> pathlib.Path:
    """Where pictures of a run go by default: `WORKDIR/attention`."""
    path, _ = locate(described.weights)
    folder = next((p for p in (path, *path.parents) if (p / "config.json").is_file()), pathlib.Path())
    return folder / "attention"
