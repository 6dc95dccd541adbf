"""How far a run is: a live line on a terminal, plain lines that grep finds in a log file."""

import math
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from vitjax.metrics import WallTime, hms

PAUSES = ("start-up", "compile", "eval", "checkpoint")  # what is not training, and so is no part of images/s


class Progress:
    """Shows step, loss, images (or tokens) a second, time to go and the share of time spent waiting for data.

    `update(step)` after every step and `report(step, values)` at logging steps, with values that are already
    on the host: nothing here waits for a device. The throughput is that of the steps between two reports,
    without the start-up, compile, eval and checkpoint phases of `wall`, and without the first step. The time
    to go is that of the remaining steps at the mean speed so far, again without first step and pauses.

    On a terminal the line is redrawn in place four times a second and `print` and `log` write above it;
    elsewhere each report is one line:

        step 120/5000 2.4% loss 1.234 images/s 5123 eta 0:12:10 data_wait 3.1%
    """

    def __init__(
        self,
        total_steps: int,
        *,
        batch_size: int = 0,
        unit: str = "img",
        units_per_example: float = 1,
        start_step: int = 0,
        wall: WallTime | None = None,
        stream: TextIO | None = None,
        interactive: bool | None = None,
        enabled: bool = True,
    ):
        """Starts showing.

        Args:
          total_steps: steps of the whole run.
          batch_size: examples a step over all processes; 0 where it means nothing.
          unit: what speed is counted in: `img`, `tokens`.
          units_per_example: how many of these an example is.
          start_step: step the run resumes from.
          wall: the run's WallTime; its phases tell pauses and waiting apart from training.
          stream: where to write; standard output unless given.
          interactive: redraw one line; by default where `stream` is a terminal.
          enabled: False shows nothing (every process but the first); the numbers are still kept.
        """
        self.total_steps = total_steps
        self.step = start_step
        self._units_per_step = batch_size * units_per_example
        self._rate_name = {"img": "images"}.get(unit, unit) + "/s"
        self._wall = wall or WallTime()
        self._stream = stream or sys.stdout
        self._enabled = enabled
        self._loss: float | None = None
        self._first: tuple[int, float, float] | None = (
            None  # step, active and waiting seconds after the first step
        )
        self._mark: tuple[int, float, float] | None = None  # the same at the last report
        self._active = 0.0
        self._rate = self._share = math.nan
        self._live = None
        if interactive is None:
            interactive = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        if enabled and interactive:
            self._live = _live(self, self._stream)

    def update(self, step: int) -> None:
        """Tells that `step` steps are done. Cheap: for every step."""
        active, waiting = self._clock()
        self.step, self._active = step, active  # kept, since WallTime is not for the thread that redraws
        if self._first is None:
            self._first = self._mark = (step, active, waiting)

    def report(self, step: int, values: Mapping[str, Any] | None = None, *, done: int | None = None) -> None:
        """Takes stock at a logging step.

        Args:
          step: steps done.
          values: fetched scalars to show. `training_loss` or `loss` is shown as loss; the rest is left to the
            MetricWriter.
          done: the last of the steps that are done, where `step` is one of several that were dispatched
            together; all of them count as equally long.
        """
        done = step if done is None else done
        values = values or {}
        loss = values.get("training_loss", values.get("loss"))
        self._loss = self._loss if loss is None else float(loss)
        now = (done, *self._clock())
        if self._mark is not None and done > self._mark[0]:
            steps, active, waiting = (b - a for a, b in zip(self._mark, now, strict=True))
            self._rate = steps * self._units_per_step / active if active > 0 else math.nan
            self._share = waiting / active if active > 0 else math.nan
            self._mark = now
        self.update(step)
        if self._live is None:
            self.print(self.line())

    def _clock(self) -> tuple[float, float]:
        """Seconds of training so far (pauses left out), and those of them spent waiting for data."""
        split = self._wall.split()
        return sum(split.values()) - sum(split[name] for name in PAUSES), split["data wait"]

    @property
    def units_per_second(self) -> float:
        """Images or tokens a second between the last two reports, all processes together; NaN before."""
        return self._rate if self._units_per_step else math.nan

    @property
    def data_wait(self) -> float:
        """Share of training time spent waiting for data between the last two reports; NaN before."""
        return self._share

    @property
    def eta_seconds(self) -> float:
        """Seconds the remaining steps will take at the mean speed so far; NaN before the second step."""
        if self._first is None or self.step <= self._first[0]:
            return math.nan
        seconds = (self._active - self._first[1]) / (self.step - self._first[0])
        return seconds * max(self.total_steps - self.step, 0)

    def fields(self) -> dict[str, str]:
        """What is shown, by name, in order; without what is not known yet."""
        fields = {"step": f"{self.step}/{self.total_steps} {self.step / max(self.total_steps, 1):.1%}"}
        if self._loss is not None:
            fields["loss"] = f"{self._loss:.4g}"
        if math.isfinite(self.units_per_second):
            rate = self.units_per_second
            fields[self._rate_name] = f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
        if math.isfinite(self.eta_seconds):
            fields["eta"] = hms(self.eta_seconds)
        if math.isfinite(self._share):
            fields["data_wait"] = f"{self._share:.1%}"
        return fields

    def line(self) -> str:
        """The plain line of this moment."""
        return " ".join(f"{name} {text}" for name, text in self.fields().items())

    def print(self, text: str) -> None:
        """Prints text above the live line, or as it is."""
        if not self._enabled:
            return
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def log(self, message: str) -> None:
        """Prints an event of this step: `step 500 eval val/prec@1 0.9712`."""
        self.print(f"step {self.step} {message}")

    def close(self) -> None:
        """Takes the live line down, leaving its last state. May be called twice."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


def _live(progress: Progress, stream: TextIO):
    """Starts a `rich` display of the line. A thread of its own redraws it: the loop never waits for that."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream, force_terminal=True)
    live = Live(get_renderable=lambda: _Line(progress), console=console, refresh_per_second=4)
    live.start()
    return live


_LIVE = {  # field: (text, style) on the live line
    "step": ("{}", "bold"),
    "loss": ("loss {}", "cyan"),
    "images/s": ("{} img/s", "green"),
    "tokens/s": ("{} tokens/s", "green"),
    "eta": ("eta {}", "magenta"),
    "data_wait": ("data {}", "dim"),
}


class _Line:
    """The live line, fitted to the terminal's width: fields from the right are dropped before it wraps."""

    def __init__(self, progress: Progress):
        self._progress = progress

    def __rich_console__(self, console, options):
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        fields = self._progress.fields()
        room = options.max_width - 1
        cells = []
        for name, text in fields.items():
            form, style = _LIVE[name]
            cell = Text(form.format(text), style=style, no_wrap=True)
            if room - cell.cell_len - 2 < 0:
                break
            room -= cell.cell_len + 2
            cells.append(cell)
        row = Table.grid(padding=(0, 2, 0, 0))
        if room >= 10:
            width = min(room - 2, 40)
            done, total = self._progress.step, max(self._progress.total_steps, 1)
            cells.insert(0, ProgressBar(total=total, completed=done, width=width))
        for _ in cells:
            row.add_column(no_wrap=True)
        row.add_row(*cells)
        yield row
