"""The loop: from a config and a working directory to a trained model, resuming where the last run stopped."""

import collections
import contextlib
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from vitjax import experiment as experiment_lib
from vitjax import feeding, files
from vitjax.analysis import report
from vitjax.checkpoint import Checkpointer
from vitjax.data import pp
from vitjax.diagnostics import HISTOGRAMS
from vitjax.errors import TrainingFailed, UserError
from vitjax.experiment import Experiment
from vitjax.metrics import MetricWriter, WallTime
from vitjax.preemption import Preempted
from vitjax.progress import Progress
from vitjax.run_info import read_run_info, run_info, write_run_info
from vitjax.train_state import TrainState

CHECKPOINTS = "checkpoints"


def train(
    config: ConfigDict, workdir: pathlib.Path, stop: Preempted, programs: dict[Any, Any] | None = None
) -> int:
    """Trains to the end of the schedule, or until `stop` says so; returns the exit code.

    A workdir that holds checkpoints of the same config is gone on with. The result is bit for bit that of an
    uninterrupted run on as many devices. `programs` is that of `experiment.build`.

    Raises:
      UserError: something the user can mend. What was saved before stays.
      TrainingFailed: the loss is no longer finite.
    """
    wall = WallTime(earlier_times(workdir))
    with contextlib.ExitStack() as opened:
        with wall.phase("start-up"):
            main_process = jax.process_index() == 0
            tell = print if main_process else lambda line: None
            run = experiment_lib.build(config, programs, workdir=workdir, tell=tell)
            checkpointer = opened.enter_context(open_checkpoints(run, workdir))
            told: list[str] = []
            start_step, state = checkpointer.restore(run.abstract_state) or (0, run.init_state(told.append))
            describe_run(run, workdir)
            note_times(run, workdir, wall)
            writer = opened.enter_context(MetricWriter(workdir if main_process else None, start_step))
            feed = opened.enter_context(contextlib.closing(feeding.open_feed(run, start_step, wall, tell)))
        progress = opened.enter_context(
            Progress(
                run.total_steps,
                batch_size=run.input.batch_size,
                unit=run.source.unit,
                units_per_example=run.source.units_per_example,
                start_step=start_step,
                wall=wall,
                enabled=main_process,
            )
        )
        for line in (headline(run), *run.source.notes, *told, *run.task.notes):
            progress.print(line)
        if start_step:
            left = "" if start_step < run.total_steps else ": training is complete"
            progress.log(f"resumed from {workdir / CHECKPOINTS}{left}")
        recorder = Recorder(run, writer, progress, wall, feed, workdir, checkpointer)
        save_every, keep_best = run.steps("ckpt", default=run.total_steps), run.best_metric
        step, leaving = start_step, False

        while step < run.total_steps and not leaving:
            with wall.phase("data wait"):
                dispatch = feed.take(steps_left(run, step, save_every))
                if recorder.devices_busy:  # the batch came in time: nobody waited for it
                    wall.charge_to("step")
            with wall.phase("step" if step > start_step else "compile"):
                state, metrics = feed.run(state, dispatch)
            with wall.phase("step"):
                recorder.add(step, dispatch, metrics)
            step += dispatch.count

            evaluators = [name for name, (every, _) in run.evaluators.items() if due(step, every, run)]
            leaving = stop(step)
            if evaluators or leaving or due(step, save_every, run):
                with wall.phase("step"):
                    recorder.settle()
                with wall.phase("eval"):
                    results = run_evaluators(run, state, evaluators)
                    keep_documents(run, evaluators, workdir, progress.print)
                recorder.evaluated(step, results)
                if leaving or due(step, save_every, run) or keep_best in results:
                    with wall.phase("checkpoint"):
                        checkpointer.save(step, state, metrics=results)
                        note_times(run, workdir, wall)
                        progress.log("saving checkpoint")

        with wall.phase("checkpoint"):
            checkpointer.wait()
        writer.flush()
        note_times(run, workdir, wall)
        progress.print(wall.summary())
        if leaving and step < run.total_steps:
            progress.print(f"stopped at step {step}, saved: the same command goes on from there")
            return stop.exit_code
        if run.settings.report:
            with wall.phase("eval"):
                report_on(run, state, workdir)
            progress.print(f"report: {workdir / 'report.html'}")
    return 0


class Recorder:
    """Reads back what steps measured, two dispatches behind, so that the devices never wait for the host.

    Every loss is looked at; at logging steps the metrics are written and shown.
    """

    LAG = 2

    def __init__(
        self,
        run: Experiment,
        writer: MetricWriter,
        progress: Progress,
        wall: WallTime,
        feed: Any,
        workdir: pathlib.Path,
        checkpointer: Checkpointer,
    ):
        self._run, self._writer, self._progress, self._wall = run, writer, progress, wall
        self._feed, self._workdir, self._checkpointer = feed, workdir, checkpointer
        self._pending: collections.deque = collections.deque()

    def add(self, done: int, dispatch: feeding.Dispatch, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of the steps after `done` that were just handed to the devices."""
        self._pending.append((done, dispatch, metrics))
        while len(self._pending) > self.LAG:
            self._record(*self._pending.popleft())

    @property
    def devices_busy(self) -> bool:
        """Whether the devices are still at what was handed to them last."""
        return bool(self._pending) and not self._pending[-1][2]["training_loss"].is_ready()

    def settle(self) -> None:
        """Waits for all steps so far. A state is saved or evaluated only after this has passed."""
        while self._pending:
            self._record(*self._pending.popleft())

    def evaluated(self, step: int, results: dict[str, float]) -> None:
        """Writes and shows what the evaluators measured after `step`."""
        if results:
            self._writer.write(step, results)
            self._progress.log("eval " + " ".join(f"{name} {value:.4g}" for name, value in results.items()))
        self._writer.flush()

    def _record(self, done: int, dispatch: feeding.Dispatch, metrics: dict[str, jax.Array]) -> None:
        steps = range(done + 1, done + dispatch.count + 1)
        logged = [step for step in steps if self._run.logged(step)]
        histograms = metrics.get(HISTOGRAMS, {}) if logged else {}
        metrics = {name: value for name, value in metrics.items() if name != HISTOGRAMS}
        wanted = {name: value for name, value in metrics.items() if logged or name in CHECKED}
        # Scalars of one step, or arrays with an entry a step.
        rows = {name: np.atleast_1d(value) for name, value in jax.device_get(wanted).items()}
        tables = jax.device_get(histograms)
        of = lambda step: {name: float(row[step - steps[0]]) for name, row in rows.items()}
        for step in steps:
            bad = {name: x for name, x in of(step).items() if name in CHECKED and not math.isfinite(x)}
            if bad:
                raise self._failure(step, bad, dispatch.ids(step))
        for step in logged:
            values = of(step)
            self._progress.report(step, values, done=steps[-1])
            self._writer.write(step, values | self._circumstances(step))
            self._write_histograms(step, {k: np.atleast_2d(v)[step - steps[0]] for k, v in tables.items()})
        self._progress.update(steps[-1])

    def _write_histograms(self, step: int, rows: dict[str, np.ndarray]) -> None:
        """Counts, and the end of the last bin behind them."""
        self._writer.write_histograms(
            step,
            {
                name: (float(row[-1]), row[:-1].tolist())
                for name, row in rows.items()
                if np.isfinite(row).all()
            },
        )

    def _circumstances(self, step: int) -> dict[str, float]:
        run, progress = self._run, self._progress
        seen, unit = step * run.input.batch_size, run.source.unit
        rates = {
            f"{unit}/sec": progress.units_per_second,
            f"{unit}/sec/core": progress.units_per_second / jax.device_count(),
            "data_wait": progress.data_wait,
        }
        about = {"num_params": run.num_params} if step == 1 else {}
        return {
            **about,
            # What this step used: a schedule counts the updates before it.
            **{name: float(value) for name, value in run.optimizer.global_schedule(step - 1).items()},
            "learning_rate": float(run.optimizer.learning_rate(step - 1)),
            "examples_seen": seen,
            "epoch": seen / run.sizes["num_examples"],
            "progress": step / run.total_steps,
            "data/skipped": self._feed.skipped,
            "uptime": self._wall.total,
            "core_hours": self._wall.total * jax.device_count() / 3600,
            **{name: value for name, value in rates.items() if math.isfinite(value)},
        }

    def _failure(self, step: int, bad: dict[str, float], ids: np.ndarray) -> TrainingFailed:
        path = self._workdir / f"nonfinite-{step}.json"
        files.replace(path, json.dumps({"step": step, "examples": ids.tolist()}))
        good = self._checkpointer.latest_step()
        last = f"the last good checkpoint is step {good}" if good else "no checkpoint was saved before"
        found = ", ".join(f"{name} is {value}" for name, value in bad.items())
        return TrainingFailed(
            f"{found} at step {step}; {last}. The batch's examples are {_some(ids)} of "
            f"{self._run.source.name} (all in {path}). Look at them, or lower config.lr or "
            "config.grad_clip_norm."
        )


CHECKED = ("training_loss", "l2_grads")


def steps_left(run: Experiment, step: int, save_every: int | None) -> int:
    """How many steps there are until something looks at the state: evaluation, saving, the end."""
    intervals = {save_every, *(every for every, _ in run.evaluators.values())}
    turns = (step - step % every + every for every in intervals if every)
    return min([run.total_steps, *(turn for turn in turns if turn < run.total_steps)]) - step


def due(step: int, every: int | None, run: Experiment) -> bool:
    """Whether something that happens every so many steps, and at the end, happens after `step`.

    A turn that comes within a quarter of its interval before the end is left to the end.
    """
    left = run.total_steps - step
    return left == 0 or (bool(every) and step % every == 0 and left > 0.25 * every)


def run_evaluators(run: Experiment, state: TrainState, names: Sequence[str]) -> dict[str, float]:
    """Returns `{"val/prec@1": 0.97, ...}` for the evaluators of these names."""
    return {
        f"{name}/{metric}": float(value)
        for name in names
        for metric, value in run.evaluators[name][1].run(state)
    }


def keep_documents(
    run: Experiment, names: Sequence[str], workdir: pathlib.Path, tell: Callable[[str], None]
) -> None:
    """Tells what evaluators noted beside their numbers, and writes their texts to `WORKDIR/evals/NAME/`."""
    for name in names:
        evaluator = run.evaluators[name][1]
        for line in getattr(evaluator, "notes", ()):
            tell(f"{name}: {line}")
        if jax.process_index() == 0:
            for file, text in getattr(evaluator, "documents", {}).items():
                files.replace(files.folder(workdir / "evals" / name) / file, text)


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> int:
    """Prints what all evaluators measure; returns 0.

    They look at the newest checkpoint of the workdir, or, where there is none, at the weights that
    `config.model_init` names.
    """
    run = experiment_lib.build(config, workdir=workdir if workdir.is_dir() else None, tell=print)
    if not run.evaluators:
        raise UserError("--eval_only: config.evals is empty, there is nothing to evaluate.")
    restored = None
    if (workdir / CHECKPOINTS).is_dir():
        with open_checkpoints(run, workdir) as checkpointer:
            restored = checkpointer.restore(run.abstract_state)
    if restored is None and run.settings.model_init is None:
        raise UserError(
            f"--eval_only: {str(workdir)!r} holds no checkpoint to evaluate; train there first, or name "
            "weights: --config.model_init.weights=FILE."
        )
    step, state = restored or (0, run.init_state(print))
    for name, value in run_evaluators(run, state, list(run.evaluators)).items():
        print(f"step {step} {name} {value:.6g}")
    keep_documents(run, list(run.evaluators), workdir, print)
    return 0


def open_checkpoints(run: Experiment, workdir: pathlib.Path) -> Checkpointer:
    """Opens the checkpoints of a workdir as the config wants them kept."""
    return Checkpointer(
        workdir / CHECKPOINTS,
        fingerprint=run.fingerprint,
        remedy="The result depends on all of these: set them back, or give another --workdir.",
        keep_last=run.settings.keep_last,
        keep_best=1 if run.settings.best_metric else 0,
        best_metric=run.settings.best_metric,
        keep_every=run.steps("keep_ckpt", default=None),
    )


def earlier_times(workdir: pathlib.Path) -> dict[str, float]:
    """Seconds by phase of the run that this one goes on with; {} for a fresh one."""
    return read_run_info(workdir).get("wall_time", {}) if (workdir / CHECKPOINTS).is_dir() else {}


def headline(run: Experiment) -> str:
    """One line that says what is about to be trained on what."""
    kind, epochs = jax.devices()[0], run.total_steps * run.input.batch_size / run.sizes["num_examples"]
    units = run.input.batch_size * run.source.units_per_example
    size = f"{run.input.batch_size:,}" + ("" if run.text is None else f" rows, {units:,.0f} target tokens")
    return (
        f"{run.settings.model['name']}: {run.num_params:,} parameters, {run.total_steps:,} steps of "
        f"{size} ({epochs:.4g} epochs of {run.source.name}) on {jax.device_count()} x "
        f"{kind.device_kind}"
    )


def describe_run(run: Experiment, workdir: pathlib.Path) -> None:
    """Writes config and parameter overview into the workdir."""
    if jax.process_index() != 0:
        return
    files.replace(workdir / "config.json", run.config.to_json_best_effort(indent=2) + "\n")
    overview = parameter_overview.get_parameter_overview(run.abstract_state.params, include_stats=False)
    files.replace(workdir / "parameters.txt", overview + "\n")


def note_times(run: Experiment, workdir: pathlib.Path, wall: WallTime) -> None:
    """Writes `run.json`: versions, devices, git revision, sizes, and the wall time up to now."""
    if jax.process_index() != 0:
        return
    about = dict(
        total_steps=run.total_steps,
        batch_size=run.input.batch_size,
        num_params=run.num_params,
        num_classes=run.num_classes,
        image_shape=run.image_shape,
        macs_per_image=run.macs_per_image,
        **run.source.about,
        wall_time=wall.split(),
    )
    write_run_info(workdir, run_info() | about)


def _some(ids: np.ndarray, most: int = 8) -> str:
    return ", ".join(map(str, ids[:most].tolist())) + (", ..." if len(ids) > most else "")


def report_on(run: Experiment, state: TrainState, workdir: pathlib.Path) -> None:
    """Writes `report.html`, with the answers of the first evaluator that keeps answers."""
    found: dict[str, Any] = {}
    keeping = [e for _, e in run.evaluators.values() if hasattr(e, "predictions")]
    if keeping:
        source, decode = keeping[0].input.source, pp.parse("decode").host
        picture = lambda index: decode(dict(source[index]), np.random.default_rng(0))["image"]
        predictions = keeping[0].predictions(state)
        found = dict(predictions=predictions, class_names=source.class_names, images=picture)
    if jax.process_index() == 0:
        report.write_report(workdir, **found)
