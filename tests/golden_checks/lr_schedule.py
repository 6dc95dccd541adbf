"""The learning rates of DeiT, epoch by epoch, with the schedule behind them, and of the small data sets'."""

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import checks
from vitjax.optim import schedules

# Of the peak, in float32. Seen: 1.6e-7 in the compiled step, 3.0e-8 on the host, which rounds once.
ERROR = 4e-7
STEPS = 7  # in an epoch


def has_schedules(config):
    cases = config.get("cases")
    return isinstance(cases, dict) and all({"warmup_lr", "min_lr"} <= set(case) for case in cases.values())


@checks(has_schedules)
def check_rates(config, arrays):
    for name, case in config["cases"].items():
        lr, epochs = case["lr"], case["epochs"]
        options = dict(decay_type="timm_cosine", warmup_lr=case["warmup_lr"], min_lr=case["min_lr"], lr=lr)
        by_epoch = schedules.create(
            total_steps=epochs * STEPS, batch_size=3, num_examples=3 * STEPS,
            warmup_epochs=case["warmup"], **options,
        )  # fmt: skip
        used = np.repeat(arrays[f"{name}/lr_used_per_epoch"], STEPS)
        compare(by_epoch, lr, used)
        # A schedule over steps is the same function of its clock, on time.
        by_step = schedules.create(total_steps=epochs, warmup_steps=case["warmup"], per="step", **options)
        compare(by_step, lr, arrays[f"{name}/schedule_at_t"])


RATES = {"lr", "epochs", "warmup_epochs", "iters_per_epoch", "min_lr", "lr_used_at_iteration"}


def has_rates_by_iteration(config):
    cases = config.get("cases")
    return isinstance(cases, list) and bool(cases) and all(set(case) >= RATES for case in cases)


@checks(has_rates_by_iteration)
def check_rates_by_iteration(config, arrays):
    del arrays
    for case in config["cases"]:
        # As in configs/small_datasets.py: the warmup begins at the lowest rate.
        schedule = schedules.create(
            total_steps=case["epochs"] * case["iters_per_epoch"], batch_size=2,
            num_examples=2 * case["iters_per_epoch"], lr=case["lr"], decay_type="timm_cosine", per="step",
            warmup_prefix=True, warmup_lr=case["min_lr"], min_lr=case["min_lr"],
            warmup_epochs=case["warmup_epochs"],
        )  # fmt: skip
        compare(schedule, case["lr"], np.asarray(case["lr_used_at_iteration"]))


def compare(schedule, lr, rates):
    """On the host, for the log, and as the compiled step has it: with its numbers as arguments."""
    steps = np.arange(len(rates), dtype=np.int32)
    for factors in (schedule(steps), jax.jit(schedule)(jnp.asarray(steps), dict(schedule.numbers))):
        np.testing.assert_allclose(lr * np.float64(factors), rates, rtol=0, atol=ERROR * lr)
