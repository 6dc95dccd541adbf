"""The live line and the plain lines."""

import io
import re

from vitjax.metrics import WallTime
from vitjax.progress import Progress


class Run:
    """A loop on a clock of its own: 10 s to compile, then 1 s a step of which 0.25 s wait for data."""

    def __init__(self, steps, **kwargs):
        self.now = 0.0
        self.wall = WallTime(clock=lambda: self.now)
        self.stream = io.StringIO()
        self.progress = Progress(steps, batch_size=32, wall=self.wall, stream=self.stream, **kwargs)

    def spend(self, phase, seconds):
        with self.wall.phase(phase):
            self.now += seconds

    def step(self, step, first=1):
        if step == first:
            self.spend("compile", 10)
        self.spend("data wait", 0.25)
        self.spend("step", 0.75)
        self.progress.update(step)


def test_plain_lines_are_greppable():
    run = Run(1000)
    for step in range(1, 21):
        run.step(step)
        if step % 10 == 0:
            run.progress.report(step, {"training_loss": 1.23456, "l2_params": 3.0})
    run.progress.log("eval val/prec@1 0.97")
    lines = run.stream.getvalue().splitlines()
    assert lines == [
        "step 10/1000 1.0% loss 1.235 images/s 32 eta 0:16:30 data_wait 25.0%",
        "step 20/1000 2.0% loss 1.235 images/s 32 eta 0:16:20 data_wait 25.0%",
        "step 20 eval val/prec@1 0.97",
    ]


def test_pauses_and_compilation_are_no_part_of_the_throughput():
    run = Run(100)
    for step in range(1, 31):
        run.step(step)
        if step == 15:
            run.spend("eval", 500)
            run.spend("checkpoint", 300)
    run.progress.report(30)
    assert abs(run.progress.units_per_second - 32) < 1e-6
    assert abs(run.progress.eta_seconds - 70) < 1e-6


def test_first_report_and_resume_know_what_they_do_not_know():
    run = Run(100, start_step=40)
    run.step(41, first=41)
    run.progress.report(41, {"loss": float("nan")})
    assert run.stream.getvalue() == "step 41/100 41.0% loss nan\n"
    run.step(42)
    run.progress.report(42)
    assert "images/s 32 eta 0:00:58" in run.stream.getvalue()


def test_disabled_shows_nothing_but_counts():
    run = Run(10, enabled=False)
    for step in (1, 2):
        run.step(step)
    run.progress.report(2)
    run.progress.log("hello")
    assert run.stream.getvalue() == "" and run.progress.units_per_second == 32


def test_live_line_redraws_and_lets_text_pass_above():
    run = Run(100, interactive=True)
    with run.progress as progress:
        for step in (1, 2, 3):
            run.step(step)
        progress.report(3, {"training_loss": 0.5})
        progress.print("[not markup] " + "x" * 200)
        progress.log("checkpoint saved")
    progress.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", run.stream.getvalue())
    assert "[not markup] " + "x" * 200 in text and "step 3 checkpoint saved" in text
    assert "3/100 3.0%" in text.splitlines()[-1] and "loss 0.5" in text.splitlines()[-1]


def test_live_line_never_wraps():
    from rich.console import Console

    from vitjax.progress import _Line

    run = Run(100)
    for step in (1, 2):
        run.step(step)
    run.progress.report(2, {"training_loss": 0.5})
    for width in (8, 20, 40, 60, 80, 200):
        console = Console(file=io.StringIO(), width=width, force_terminal=True)
        console.print(_Line(run.progress))
        lines = console.file.getvalue().rstrip("\n").split("\n")
        assert len(lines) == 1, (width, lines)
