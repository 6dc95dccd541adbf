"""The learning rates that DeiT trains with, epoch by epoch, and those of the schedule behind them."""

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


def compare(schedule, lr, rates):
    """On the host, for the log, and as the compiled step has it: with its numbers as arguments."""
    steps = np.arange(len(rates), dtype=np.int32)
    for factors in (schedule(steps), jax.jit(schedule)(jnp.asarray(steps), dict(schedule.numbers))):
        np.testing.assert_allclose(lr * np.float64(factors), rates, rtol=0, atol=ERROR * lr)
