"""`python -m vitjax.sweep report`: the table of a sweep, and the page with the paper's figures."""

import argparse
from collections import Counter

from vitjax import files
from vitjax.errors import UserError, nearest
from vitjax.sweep.page import Page
from vitjax.sweep.settings import axis_of
from vitjax.sweep.speed import inference_speeds
from vitjax.sweep.table import Table, read_table, write_table

REPORT_FILE = "report.html"
MAX_CELLS = 40  # values of an axis in a heat map; of a random search there are as many as trials


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `python -m vitjax.sweep report`."""
    add = parser.add_argument
    add("--metric", metavar="NAME", help="such as val/prec@1; default: the trials' best_metric")
    add(
        "--value",
        choices=("final", "best"),
        default="final",
        help="the last evaluation, or the best of a run",
    )
    add("--rows", metavar="AXIS", help="axis down the heat maps; default: the regularisation, or what varies")
    add(
        "--columns",
        metavar="AXIS",
        help="axis across the heat maps; default: the augmentation, or what varies",
    )
    add("--panels", metavar="AXIS", help="one heat map for each value of it; default: the model")
    add("--others", choices=("best", "mean"), default="best",
        help="what a cell shows of the settings in it that differ in other axes")  # fmt: skip
    add("--no-speed", action="store_true", help="measure no inference speed; show what was measured before")
    add("--speed-batch", type=int, default=32, metavar="N", help="images in a call when speed is measured")


def run(args: argparse.Namespace) -> int:
    """Writes table.csv, table.parquet and report.html into the sweep's folder; returns 0.

    Raises:
      UserError: there is no sweep, an axis or metric does not exist, or a file cannot be written.
    """
    table = read_table(args.workdir)
    if args.speed_batch < 1:
        raise UserError(f"--speed-batch {args.speed_batch}: 1 or more.")
    page = Page(table, args, choose_axes(table, args.panels, args.rows, args.columns))
    for path in write_table(args.workdir, table):
        print(path)
    done = [row["name"] for row in table.done]
    if done and page.metric:
        page.speeds = inference_speeds(
            args.workdir, done, batch_size=args.speed_batch, measure=not args.no_speed
        )
    files.replace(args.workdir / REPORT_FILE, page.html())
    print(args.workdir / REPORT_FILE)
    return 0


def choose_axes(
    table: Table, panels: str | None, rows: str | None, columns: str | None
) -> tuple[str | None, str | None, str | None]:
    """The axes of the heat maps: what is asked for, else by their roles, else what varies.

    Raises:
      UserError: an axis that the sweep does not have, or one asked for twice.
    """
    asked = {"--panels": panels, "--rows": rows, "--columns": columns}
    for option, axis in asked.items():
        if axis is not None and axis not in table.axes:
            known = ", ".join(table.axes) or "none"
            raise UserError(
                f"{option} {axis}: the sweep has no such axis.{nearest(axis, table.axes)} There are: {known}."
            )
    twice = [axis for axis, n in Counter(filter(None, asked.values())).items() if n > 1]
    if twice:
        raise UserError(f"--panels, --rows and --columns: {twice[0]!r} is asked for twice.")
    taken = [axis for axis in asked.values() if axis]

    def choose(wanted: str | None, role: str, most: int) -> str | None:
        if wanted:
            return wanted
        free = [a for a in table.varying if a not in taken and len(table.axes[a]) <= most]
        likely = axis_of(table, role)
        found = likely if likely in free else None
        if found is None and role != "model":
            held = [axis_of(table, other) for other in ("model", "regularisation", "augmentation")]
            others = [axis for axis in free if axis not in held] or free
            found = max(others, key=lambda axis: len(table.axes[axis]), default=None)
        taken.extend([found] if found else [])
        return found

    panels = choose(panels, "model", MAX_CELLS)
    columns = choose(columns, "augmentation", MAX_CELLS)
    rows = choose(rows, "regularisation", MAX_CELLS)
    if panels and not columns:  # nothing varies but the model: one row of models
        return None, rows, panels
    return panels, rows, columns
