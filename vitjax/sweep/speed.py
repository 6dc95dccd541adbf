"""How many images a second the models of a sweep classify, measured once and kept beside the table."""

import csv
import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from vitjax import files
from vitjax.config import bind, plain, settings
from vitjax.errors import UserError

SPEED_FILE = "inference_speed.csv"
ROUNDS = 5  # each model is timed once a round, so that a slow minute of the machine meets all of them
SECONDS = 0.2  # of calls in a round, at least one call

# Fields of models that change nothing in inference: trials that differ in these alone share one measurement.
TRAINING_ONLY = (
    "dropout",
    "drop_path",
    "drop_path_uniform",
    "drop_path_rescale",
    "initialisation",
    "head_bias",
    "head_zeroinit",
    "average_heads",
    "remat",
)


@dataclasses.dataclass(frozen=True)
class Forward:
    """A forward pass: what has to be equal for two trials to be equally fast.

    Attributes:
      model: config section `model` as JSON, sorted, without what matters in training alone.
      num_classes: size of the head.
      image: height x width x channels, such as `224x224x3`.
    """

    model: str
    num_classes: int
    image: str


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Images a second by trial name, all on one kind of device, and why others are missing."""

    device: str
    batch_size: int
    by_trial: dict[str, float]
    missing: dict[str, str]


def inference_speeds(
    workdir: pathlib.Path,
    trials: Sequence[str],
    *,
    batch_size: int,
    measure: bool,
    say: Callable[[str], None] = print,
) -> Speeds | None:
    """The speeds of these trials' models, from `WORKDIR/inference_speed.csv` or measured now and kept there.

    Nothing is measured if the file has every model on some one kind of device; delete it to measure again.

    Args:
      workdir: of the sweep.
      trials: names of trials; each is rebuilt by shape from its own `config.json`.
      batch_size: images in a call.
      measure: measure what is missing on this machine; False: take what the file has.
      say: shows progress.

    Returns: None if nothing is known.
    """
    kept = _read(workdir / SPEED_FILE)
    if not measure and not kept:
        return None
    forwards, missing, shapes = {}, {}, {}
    for name in trials:
        try:
            forwards[name] = forward_of(workdir / "trials" / name, shapes)
        except UserError as error:
            missing[name] = str(error)
    wanted = list(dict.fromkeys(forwards.values()))
    covered = {
        place: sum((forward, *place) in kept for forward in wanted)
        for place in dict.fromkeys(key[1:] for key in kept)
        if place[1] == batch_size or not measure
    }
    place = max(covered, key=lambda place: covered[place], default=None)
    if measure and (place is None or covered[place] < len(wanted)):
        place = (_device_kind(), batch_size)
        new = [forward for forward in wanted if (forward, *place) not in kept]
        if new:
            say(f"measuring inference speed: {len(new)} models, {batch_size} images a call")
            measured, failed = _measure(new, batch_size)
            kept |= {(forward, *place): rate for forward, rate in measured.items()}
            missing |= {name: failed[f] for name, f in forwards.items() if f in failed}
            _write(workdir / SPEED_FILE, kept)
    if place is None:
        return None
    found = {name: kept[forward, *place] for name, forward in forwards.items() if (forward, *place) in kept}
    return Speeds(place[0], place[1], found, missing)


def forward_of(folder: pathlib.Path, shapes: dict[str, tuple[int, str]] | None = None) -> Forward:
    """The forward pass of a trial, from its `config.json` and the first image of its data.

    Args:
      folder: the trial's workdir.
      shapes: number of classes and image size by config sections, kept between calls.

    Raises:
      UserError: there is no config, or its data cannot be read on this machine.
    """
    from ml_collections import ConfigDict

    try:
        config = ConfigDict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read: {error}") from error
    shapes = {} if shapes is None else shapes
    settings(config)  # refuses one without a model or an input
    key = json.dumps(plain({name: config.get(name) for name in ("input", "num_classes")}), sort_keys=True)
    if key not in shapes:
        shapes[key] = _classes_and_image(config)
    model = {name: value for name, value in plain(config.model).items() if name not in TRAINING_ONLY}
    return Forward(json.dumps(model, sort_keys=True), *shapes[key])


def _classes_and_image(config: Any) -> tuple[int, str]:
    """What the training pipeline hands to the model, by shape, from one example."""
    import jax

    from vitjax import experiment
    from vitjax.data.sources import open_source

    top = settings(config)
    data = experiment.Input(**bind(experiment.Input, top.input, "input"))
    source = open_source(data.data, data.split)
    classes = source.num_classes if top.num_classes is None else top.num_classes
    preprocess = experiment.parse_pp(data.pp, classes, "input.pp")
    batch = experiment.first_batch_spec(source, preprocess, data, classes)
    image = jax.eval_shape(preprocess.device, batch, jax.random.key(0)).get("image")
    if image is None:
        raise UserError("config.input.pp leaves no 'image' to classify.")
    return classes, "x".join(map(str, image.shape[1:]))


def _device_kind() -> str:
    import jax

    return jax.devices()[0].device_kind


def _measure(forwards: Sequence[Forward], batch_size: int) -> tuple[dict[Forward, float], dict[Forward, str]]:
    """Median images a second on one device by forward pass, and what went wrong with the others."""
    from vitjax.analysis.timing import in_turns

    program = functools.cache(functools.partial(_program, batch_size=batch_size))
    starts = {forward: lambda forward=forward: program(forward).start() for forward in forwards}
    times, failed = in_turns(starts, rounds=ROUNDS, seconds=SECONDS)
    return {forward: found.rate(batch_size) for forward, found in times.items()}, failed


def _program(forward: Forward, batch_size: int) -> Any:
    """The forward pass on arbitrary weights and images; compiled when it has its first turn."""
    from vitjax import models
    from vitjax.analysis.programs import abstract_variables, inference

    section = json.loads(forward.model)
    model = models.create(section.pop("name"), num_classes=forward.num_classes, **section)
    height, width, channels = map(int, forward.image.split("x"))
    variables = abstract_variables(model, (height, width, channels))
    return inference(model, variables, (batch_size, height, width, channels))


# The file

_COLUMNS = ("model", "num_classes", "image", "device", "batch_size", "images_per_second")
_Kept = dict[tuple[Forward, str, int], float]  # by forward pass, kind of device, images a call


def _read(path: pathlib.Path) -> _Kept:
    """What was measured before; rows that cannot be read are measured again."""
    kept: _Kept = {}
    if not path.exists():
        return kept
    for row in csv.DictReader(io.StringIO(path.read_text())):
        try:
            forward = Forward(row["model"], int(row["num_classes"]), row["image"])
            kept[forward, row["device"], int(row["batch_size"])] = float(row["images_per_second"])
        except (KeyError, TypeError, ValueError):
            continue
    return kept


def _write(path: pathlib.Path, kept: _Kept) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for (forward, device, batch_size), rate in kept.items():
        writer.writerow((forward.model, forward.num_classes, forward.image, device, batch_size, rate))
    files.replace(path, text.getvalue())
