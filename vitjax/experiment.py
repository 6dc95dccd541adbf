"""Everything that a config names, built and checked before the first step.

Training, `--check` and `--eval_only` all start here: a config that one of them accepts works in all.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vitjax import checksum as checksum_lib
from vitjax import (
    compiler,
    diagnostics,
    durations,
    evaluators,
    model_init,
    models,
    optim,
    sharding,
    tasks,
    weights,
)
from vitjax.analysis.costs import multiply_accumulates
from vitjax.config import Settings, bind, fingerprint, plain
from vitjax.config import settings as read_settings
from vitjax.data import on_device, pipeline, pp, shuffle, value_scale
from vitjax.data.text.section import Text
from vitjax.data.text.vocabulary import Vocabulary
from vitjax.errors import UserError, nearest
from vitjax.teachers import Student
from vitjax.train_input import Input, fill_in, first_batch_spec, open_training, parse_pp
from vitjax.train_state import Hyperparameters, TrainState, is_logged, make_init, make_many, make_step

# Fields of `Input` that say nothing of the batches which the host makes.
BESIDE_STREAM = ("workers", "on_device", "steps_per_dispatch")
MOST_PROGRAMS = 24  # jitted functions that experiments of one process keep in common


@dataclasses.dataclass
class Experiment:
    """The parts of one run.

    Attributes:
      config: the resolved config.
      settings: its top level.
      input: its section `input`.
      source: the training examples.
      num_classes: number of labels.
      preprocess: host and device half of the training preprocessing.
      mesh: the device mesh.
      model: the module.
      task: what is learnt.
      optimizer: transformation, schedules and averaging.
      total_steps: length of the run.
      batch_spec: shapes of the global batch as it reaches the device.
      abstract_state: the train state by shape, with shardings.
      evaluators: `{name: (interval in steps, evaluator)}`.
      programs: jitted functions by what they depend on, see `build`.
      diagnostics: what looks into a binary network at logging steps; None for nothing.
      text: section `text`; None for images.
      vocabulary: of the text; None for images.
    """

    config: ConfigDict
    settings: Settings
    input: Input
    source: Any
    num_classes: int
    preprocess: pp.Preprocess
    mesh: Mesh
    model: Any
    task: Any
    optimizer: optim.Optimizer
    total_steps: int
    batch_spec: dict[str, jax.ShapeDtypeStruct]
    abstract_state: TrainState
    evaluators: dict[str, tuple[int, Any]]
    programs: dict[tuple[str, str], Callable]
    diagnostics: Any = None
    text: Text | None = None
    vocabulary: Vocabulary | None = None

    def steps(self, name: str, default: int | None = None) -> int | None:
        """The duration `name` of the config in steps."""
        return durations.steps(self.config, name, default=default, **self.sizes)

    @property
    def sizes(self) -> dict[str, int]:
        """What a duration is measured by."""
        return dict(self.input.sizes(self.source), total_steps=self.total_steps)

    @property
    def best_metric(self) -> str | None:
        """The metric by which the best checkpoint is kept, without `max:` or `min:` in front."""
        return self.settings.best_metric and re.sub("^(max|min):", "", self.settings.best_metric)

    @property
    def num_params(self) -> int:
        """Number of parameters of the model."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_state.params))

    def init_state(self, tell: Callable[[str], None] = lambda text: None) -> TrainState:
        """The state at step 0, born sharded; `tell` takes what is to be said about weights it starts from."""
        init, spec = _init(self.settings, self.task, self.optimizer, self.preprocess), self.batch_spec
        zeros = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spec)
        given = {}
        if loaded := self.initial_weights():
            tell(loaded.report)
            given = model_init.place(loaded.params, self.abstract_state)
        placement = state_placement(self.abstract_state)
        jitted = self._shared("init", lambda: jax.jit(
            lambda rng, given: init(zeros(), rng, given), out_shardings=placement
        ))  # fmt: skip
        return jitted(self.hyperparameters.rng, given)

    def initial_weights(self) -> weights.Loaded | None:
        """Reads the weights that `config.model_init` names; None without such a section."""
        if self.settings.model_init is None:
            return None
        with blaming("config.model_init"):
            return model_init.load(self.settings.model_init, self.abstract_state, self.patch_grid)

    @property
    def image_shape(self) -> list[int] | None:
        """`[H, W, C]` of the images that the model sees; None where it sees none."""
        batch = jax.eval_shape(self.preprocess.device, self.batch_spec, jax.random.key(0))
        return list(batch["image"].shape[1:]) if "image" in batch else None

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """(height, width) of the grid of patches that the model makes of an image, None if it makes none."""
        stem = jax.eval_shape(lambda *args: self._forward(*args)[1].get("stem"), *self._forward_args())
        return None if stem is None else stem.shape[1:3]

    @functools.cached_property
    def macs_per_image(self) -> int | None:
        """Multiply-accumulates of the forward pass for one example; None where they cannot be counted."""
        try:
            return multiply_accumulates(lambda *args: self._forward(*args)[0], *self._forward_args())
        except ValueError:  # a kernel that runs its body once a block
            return None

    def _forward(self, params: Any, model_state: Any, batch: dict) -> tuple[Any, dict]:
        return self.task.predict(params, model_state, batch)

    def _forward_args(self) -> tuple:
        """Arguments of `_forward` by shape, for one example. Some ops take whole batches: these get one."""
        batch = jax.eval_shape(self.preprocess.device, self.batch_spec, jax.random.key(0))
        spec = {key: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype) for key, leaf in batch.items()}
        return self.abstract_state.params, self.abstract_state.model_state, spec

    def train_step(self) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
        """The jitted step `(state, batch) -> (state, metrics)`; it takes over the buffers of the state."""
        jitted = self._shared("step", lambda: self.jit_steps(self._step()))
        hyper = self.placed_hyperparameters()
        return lambda state, batch: jitted(state, batch, hyper)

    def train_steps(self, data: on_device.DeviceSet) -> Callable[[TrainState, int], tuple[TrainState, dict]]:
        """The jitted `(state, count) -> (state, metrics)`: `count` steps at once on a set on the devices.

        Metrics are arrays `[input.steps_per_dispatch]`, of which the first `count` entries mean something.
        """
        most = self.input.steps_per_dispatch
        jitted = self._shared("steps", lambda: self.jit_steps(make_many(self._step(), most)))
        hyper = self.placed_hyperparameters()
        return lambda state, count: jitted(state, data, hyper, np.int32(count))

    def _step(self) -> Callable:
        ema = self.settings.ema
        return make_step(
            self.task,
            self.optimizer,
            self.preprocess.device,
            update_ema=optim.ema.create(**ema) if ema is not None else None,
            accumulation=self.settings.grad_accum,
            diagnostics=self.diagnostics,
        )

    def jit_steps(self, function: Callable) -> Callable:
        """Jits `(state, ...) -> (state, metrics)`."""
        placement = (state_placement(self.abstract_state), None)
        options = compiler.options(self.model)
        return jax.jit(function, donate_argnums=0, out_shardings=placement, compiler_options=options)

    def placed_hyperparameters(self) -> Hyperparameters:
        """The hyperparameters, and what the task holds frozen, on all devices of all processes."""
        everywhere = jax.sharding.NamedSharding(self.mesh, jax.P())
        # By jit: device_put serves the devices of this process alone.
        hyper = jax.jit(lambda hyper: hyper, out_shardings=everywhere)(self.hyperparameters)
        return hyper.replace(frozen=self.frozen)

    @functools.cached_property
    def frozen(self) -> Any:
        """Variables that the task needs and the run does not train, whole on every device; None without any.

        They are read here, once, and are no part of the programs that experiments share.
        """
        return sharding.replicate(self.task.frozen, self.mesh)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What determines the trained parameters: the config's part, checksums of vocabulary and teacher."""
        found = fingerprint(self.config)
        if self.vocabulary is not None:
            found["text.vocabulary.checksum"] = self.vocabulary.checksum
        if (teacher := getattr(self.task, "teacher", None)) is not None:
            checksum = getattr(teacher, "checksum", None)
            found["task.teacher.checksum"] = (
                checksum_lib.checksum(self.frozen) if checksum is None else checksum
            )
        return found

    def _shared(self, name: str, make: Callable[[], Callable]) -> Callable:
        """The jitted function of this name from `programs`; the first experiment that needs it makes it.

        What it depends on is the whole config but for arguments of the program (seed, learning rate, weight
        decay unless it is 0), where it starts, and what is beside the step.
        """
        config = plain(self.config)
        beside = (
            "seed",
            "lr",
            "lr_base_batch",
            "wd",
            "model_init",
            "evals",
            "best_metric",
            "keep_last",
            "report",
        )
        static = {key: value for key, value in config.items() if key not in beside}
        pieces = self.vocabulary and self.vocabulary.checksum
        key = repr((static, bool(self.optimizer.wd), self.num_classes, self.batch_spec, self.mesh, pieces))
        program = self.programs.setdefault((name, key), make())
        while len(self.programs) > MOST_PROGRAMS:  # each keeps its machine code in memory
            del self.programs[next(iter(self.programs))]
        return program

    @functools.cached_property
    def hyperparameters(self) -> Hyperparameters:
        """What the compiled step takes as arguments: runs that differ in nothing else share it."""
        log_every = max(1, self.steps("log_training", default=50) or self.total_steps)
        rng = jax.random.key(self.settings.seed)
        return Hyperparameters(rng, self.optimizer.hyperparameters, log_every, self.total_steps)

    def logged(self, step: int) -> bool:
        """Whether the metrics of `step` are written: first, every so many, last."""
        return is_logged(step, self.hyperparameters)

    def load_on_device(
        self, tell: Callable[[str], None] = print
    ) -> tuple[on_device.DeviceSet, on_device.Loaded]:
        """Reads the training set and puts it on the devices, with what is to be known of its rows."""
        rows = sharding.batch_sharding(self.mesh)
        check_on_device(self.source, self.batch_spec, self.mesh, self.total_steps)
        with blaming("config.input"):
            loaded = on_device.load(
                self.source,
                self.preprocess.host,
                self.batch_spec,
                rows,
                on_error=self.input.on_error,
                workers=self.input.num_workers,
                num_classes=self.num_classes,
                tell=tell,
            )
        seed = shuffle.Seed.of(self.settings.seed)
        return on_device.DeviceSet(loaded.arrays, seed, self.order, rows), loaded

    @property
    def set_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The training set by shape, as it would lie on the devices."""
        rows = len(self.source)
        return {
            key: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)
            for key, leaf in self.batch_spec.items()
        }

    @property
    def order(self) -> on_device.Order:
        """Which example of a set on the devices stands at which position of the stream."""
        return on_device.Order(len(self.source), self.input.batch_size, self.input.repeats, self.input.passes)

    def batches(self, start_step: int) -> pipeline.BatchIterator:
        """This process's rows of the training batches from `start_step` on."""
        if self.input.on_device:
            raise UserError(
                "config.input.on_device = True makes batches on the devices, where the host cannot see them: "
                "set config.input.on_device = False."
            )
        return pipeline.train_batches(
            self.source,
            self.preprocess.host,
            batch_size=self.input.batch_size,
            seed=self.settings.seed,
            start_step=start_step,
            workers=self.input.num_workers,
            on_error=self.input.on_error,
            num_classes=self.num_classes,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            repeats=self.input.repeats,
            passes=self.input.passes,
            by_position=self.task.by_position,
        )


def state_placement(abstract_state: TrainState) -> Any:
    """The shardings of a state that is given by shape."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state)


def build(
    config: ConfigDict,
    programs: dict[tuple[str, str], Callable] | None = None,
    *,
    workdir: pathlib.Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Experiment:
    """Builds what the config names.

    Args:
      config: as `vitjax.config.load` returns it.
      programs: a dict that experiments of one process may share, so that those that differ in seed, learning
        rate and weight decay alone trace and load the step once. It must not outlive a change of the code.
      workdir: where a run on text keeps its vocabulary; None: nothing is read or written there.
      tell: takes lines on what takes long.

    Raises:
      UserError: a key nobody reads, a value that does not fit, or data that is not there.
    """
    settings = read_settings(config)
    mesh = sharding.make_mesh(settings.mesh)
    data = Input(**bind(Input, settings.input, "input"))
    sharding.check_batch_size(data.batch_size, mesh, accumulation=settings.grad_accum)

    with blaming("config.input"):
        source, text, vocabulary = open_training(
            data, settings.text, settings.seed, workdir, tell, store=jax.process_index() == 0
        )
    num_classes = _num_classes(settings, source)
    preprocess = parse_pp(data.pp, num_classes, "input.pp", on_device=data.on_device)
    batch_spec = first_batch_spec(source, preprocess, data, num_classes)

    sizes = data.sizes(source)
    total_steps = durations.steps(config, "total", total_steps=None, **sizes)
    if total_steps < 1:
        raise UserError("the length of training is 0: set config.total_steps or config.total_epochs.")
    model = _create_model(settings, num_classes)
    student = _student(settings, data, source, preprocess, batch_spec, num_classes, total_steps)
    task = tasks.create(settings.task, model, student)
    if vocabulary is not None:
        task.vocabulary = vocabulary
    batch_spec |= {key: rows.spec(data.batch_size) for key, rows in task.by_position.items()}
    if data.on_device:
        check_on_device(source, batch_spec, mesh, total_steps, by_position=task.by_position)
    with blaming("config.input.pp"):
        abstract_params = jax.eval_shape(
            lambda rng, batch: task.init(rng, preprocess.device(batch, rng))[0], jax.random.key(0), batch_spec
        )
    optimizer = optim.create(abstract_params, total_steps=total_steps, **sizes, **optimizer_section(config))
    abstract_state = _shape_state(settings, task, optimizer, preprocess, batch_spec, mesh)

    experiment = Experiment(
        config, settings, data, source, num_classes, preprocess, mesh, model, task, optimizer, total_steps,
        batch_spec, abstract_state, {}, {} if programs is None else programs, None, text, vocabulary,
    )  # fmt: skip
    for name, section in settings.evals.items():
        experiment.evaluators[name] = _build_evaluator(experiment, name, section)
    check_best_metric(experiment)
    if settings.diagnostics is not None:
        experiment.diagnostics = diagnostics.create(settings.diagnostics, task)
        experiment.diagnostics.check(*_diagnosed(experiment))
    if settings.model_init is not None:
        model_init.read(settings.model_init)
    return experiment


def _diagnosed(run: Experiment) -> tuple:
    """What the forward pass of training takes, by shape."""
    state, rng = run.abstract_state, jax.random.key(0)
    batch = jax.eval_shape(run.preprocess.device, run.batch_spec, rng)
    return state.params, state.model_state, batch, rng, jnp.float32(0)


def check_on_device(
    source: Any, batch_spec: dict, mesh: Mesh, total_steps: int, by_position: Any = ()
) -> None:
    """Refuses what `config.input.on_device` cannot do: a set too large, a run too long, recorded logits."""
    if by_position:
        raise UserError(
            "config.input.on_device = True does not go with config.task.teacher.logits, which are recorded "
            "of the views that the host makes. Set config.input.on_device = False, or let the teacher run in "
            "the step (config.task.teacher.weights)."
        )
    on_device.check(source, batch_spec, sharding.batch_sharding(mesh), steps=total_steps)


def _num_classes(settings: Settings, source: Any) -> int:
    found = source.num_classes if settings.num_classes is None else settings.num_classes
    if found < 1:
        raise UserError(f"config.num_classes = {found}: 1 or more; left out, as many as the source has.")
    return found


def _student(
    settings: Settings,
    data: Input,
    source: Any,
    preprocess: pp.Preprocess,
    batch_spec: dict[str, jax.ShapeDtypeStruct],
    num_classes: int,
    total_steps: int,
) -> Student:
    """What a teacher has to know of the run."""
    with blaming("config.input.pp"):
        batch = jax.eval_shape(preprocess.device, batch_spec, jax.random.key(0))
    known = {key: value for key, value in dataclasses.asdict(data).items() if value is not None}
    stream = {f"input.{key}": value for key, value in known.items() if key not in BESIDE_STREAM}
    stream["input.pp"] = fill_in(data.pp, num_classes)
    stream |= dict(seed=settings.seed, batch_size=data.batch_size, examples=len(source))
    return Student(
        num_classes=num_classes,
        image=batch["image"].shape if "image" in batch else (),
        scale=value_scale.after(preprocess),
        stream=json.loads(json.dumps(stream)),
        steps=total_steps,
    )


def _create_model(settings: Settings, num_classes: int) -> Any:
    options = dict(settings.model)
    if "name" not in options:
        raise UserError("config.model.name is missing: name an architecture, such as 'vit_s32'.")
    if "num_classes" in options:
        raise UserError("config.model.num_classes belongs to the top level: set config.num_classes.")
    with blaming("config.model"):
        return models.create(options.pop("name"), num_classes=num_classes, **options)


def _shape_state(
    settings: Settings,
    task: Any,
    optimizer: optim.Optimizer,
    preprocess: pp.Preprocess,
    batch_spec: dict[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
) -> TrainState:
    """The train state by shape, with shardings, after the loss has been found to go with the batch."""
    if settings.ema is not None:
        bind(optim.ema.create, settings.ema, "ema")
    state = jax.eval_shape(_init(settings, task, optimizer, preprocess), batch_spec, jax.random.key(0))
    placement = sharding.state_shardings(state, settings.sharding, mesh)
    with blaming("config.input.pp"):  # what the loss misses is better missed now than after the compilation
        jax.eval_shape(
            lambda state, batch, rng, frozen: task.loss(
                state.params, state.model_state, preprocess.device(batch, rng), rng, frozen=frozen
            )[0],
            state,
            batch_spec,
            jax.random.key(0),
            task.abstract_frozen,
        )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, placement
    )


@contextlib.contextmanager
def blaming(key: str) -> Iterator[None]:
    """Puts the config key in front of what a mistake in it raises, unless the message names one itself."""
    try:
        yield
    except UserError as error:
        named = str(error).startswith(("config", "unknown config", "model."))
        raise error if named else UserError(f"{key}: {error}") from error


def check_best_metric(experiment: Experiment) -> None:
    """Refuses a `best_metric` that no evaluator measures: no best checkpoint would ever be kept."""
    wanted = experiment.best_metric
    if wanted is None:
        return
    known, open_ended = [], []
    for name, (_, evaluator) in experiment.evaluators.items():
        metrics = getattr(evaluator, "metrics", None)
        known += [f"{name}/{metric}" for metric in metrics or ()]
        open_ended += [] if metrics else [f"{name}/"]
    if wanted not in known and not wanted.startswith(tuple(open_ended)):
        raise UserError(
            f"config.best_metric = {experiment.settings.best_metric!r} is measured by no evaluator."
            f"{nearest(wanted, known)} There are: {', '.join(known) or 'none'}."
        )


def optimizer_section(config: ConfigDict) -> dict[str, Any]:
    """The top-level keys that `optim.create` reads."""
    keys = ("optax_name", "optax", "lr", "lr_base_batch", "lr_mults", "layer_decay", "wd", "wd_mults")
    keys += ("schedule", "grad_clip_norm", "weight_clips")
    return {key: plain(config[key]) for key in keys if config.get(key) is not None}


def _init(settings: Settings, task: Any, optimizer: optim.Optimizer, preprocess: pp.Preprocess) -> Callable:
    return make_init(task, optimizer, preprocess.device, ema=settings.ema is not None)


def _build_evaluator(experiment: Experiment, name: str, section: dict) -> tuple[int, Any]:
    if not isinstance(section, dict):
        raise UserError(f"config.evals.{name} = {section!r} must be a section, dict(type='accuracy', ...).")
    with blaming(f"config.evals.{name}"):
        every = durations.steps(section, "log", default=experiment.total_steps, **experiment.sizes)
    section = fill_in(section, experiment.num_classes)
    context = evaluators.Context(
        task=experiment.task,
        mesh=experiment.mesh,
        compiler_options=compiler.options(experiment.model),
        text=experiment.text,
        vocabulary=experiment.vocabulary,
    )
    defaults = dict(
        batch_size=experiment.input.batch_size,
        workers=experiment.input.num_workers,
        on_error=experiment.input.on_error,
        loss=getattr(experiment.task, "loss_name", None),
        on_device=experiment.input.on_device,
    )
    with blaming(f"config.evals.{name}"):
        evaluator = evaluators.create(name, section, context=context, defaults=defaults)
        if hasattr(evaluator, "check"):
            evaluator.check(experiment.abstract_state)
    return every, evaluator
