"""What is timed: inference, training step and matrix product as compiled programs, on made-up numbers."""

import functools
import math
import types
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from vitjax import compiler, optim, tasks
from vitjax.analysis.costs import multiply_accumulates
from vitjax.data import pp
from vitjax.train_state import Hyperparameters, TrainState, make_step

_ZERO, _ONE = ("bias", "mean"), ("scale", "var")


class Program:
    """A jitted function with the arguments that it is called with."""

    def __init__(self, jitted: Any, arguments: Callable[[], tuple], *, carries: bool = False):
        """Compiles nothing yet.

        Args:
          jitted: what `jax.jit` returned.
          arguments: makes its arguments, arrays of the host.
          carries: the first result takes the place of the first argument, whose buffers are donated.
        """
        self._jitted = jitted
        self._arguments = arguments
        self._carries = carries

    @functools.cached_property
    def arguments(self) -> tuple:
        """Arguments on the host, drawn once."""
        return self._arguments()

    @functools.cached_property
    def compiled(self) -> Any:
        """The program for jax's default device."""
        spec = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.arguments)
        return self._jitted.lower(*spec).compile()

    @property
    def memory(self) -> int | None:
        """Bytes of arguments, results and temporaries, as planned by XLA; None if it does not say."""
        plan = self.compiled.memory_analysis()
        if plan is None:
            return None
        unaliased = plan.output_size_in_bytes - plan.alias_size_in_bytes
        return plan.argument_size_in_bytes + unaliased + plan.temp_size_in_bytes

    def start(self) -> Callable[[], None]:
        """Puts the arguments on the device; the returned call runs the program and waits for it."""
        arguments = jax.block_until_ready(jax.device_put(self.arguments))

        def call() -> None:
            nonlocal arguments
            results = jax.block_until_ready(self.compiled(*arguments))
            if self._carries:
                arguments = (results[0], *arguments[1:])

        return call


def inference(model: Any, variables: Any, image: tuple[int, int, int, int]) -> Program:
    """The forward pass for float32 images `[B, H, W, C]` that lie on the device in model range.

    Args:
      model: a linen module.
      variables: what `abstract_variables` says of it.
      image: shape of the images.
    """

    def arguments() -> tuple:
        return draw(variables), np.random.default_rng(1).standard_normal(image, np.float32)

    logits = jax.jit(
        lambda variables, image: model.apply(variables, image, train=False)[0],
        compiler_options=compiler.options(model),
    )
    return Program(logits, arguments)


def training_step(model: Any, variables: Any, image: tuple[int, int, int, int], num_classes: int) -> Program:
    """The step of `vitjax.train`: softmax cross-entropy, AdamW, state donated, uint8 images on the device.

    Args:
      model: a linen module.
      variables: what `abstract_variables` says of it.
      image: shape of the images.
      num_classes: size of its head.
    """
    if getattr(model, "distilled", False):  # without a teacher both heads learn the labels, as in fine-tuning
        model = model.clone(average_heads=True)
    task = tasks.create({"name": "classify", "loss": "softmax_xent"}, model)
    preprocess = pp.parse(
        f"value_range(-1, 1)|onehot({num_classes}, key='label', key_result='labels')"
    ).device
    model_state = dict(variables)
    params = model_state.pop("params")
    optimizer = optim.create(params, total_steps=1000, batch_size=image[0], lr=1e-3, wd=1e-4)
    opt_state = jax.eval_shape(optimizer.init, params)
    # Metrics are read every 50 steps, as in a run.
    hyper = Hyperparameters(jax.random.key(0), optimizer.hyperparameters, log_every=50, total_steps=1000)

    def arguments() -> tuple:
        rng = np.random.default_rng(1)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), opt_state)
        state = TrainState(
            step=cast(Any, np.zeros((), np.int32)),  # of the host, as all: what is donated must not be kept
            params=draw(params),
            model_state=draw(model_state),
            opt_state=zeros,
            ema_params=None,
        )
        batch = {
            "image": rng.integers(0, 256, image, np.uint8),
            "label": rng.integers(0, num_classes, image[0]).astype(np.int32),
        }
        return state, batch, jax.tree.map(_strong, hyper)

    step = jax.jit(
        make_step(task, optimizer, preprocess), donate_argnums=0, compiler_options=compiler.options(model)
    )
    return Program(step, arguments, carries=True)


def matrix_product(size: int, dtype: str) -> Program:
    """A product of two square matrices, `2 * size**3` FLOPs: what a device can do at best, nearly."""

    def arguments() -> tuple:
        rng = np.random.default_rng(0)
        matrices = (rng.standard_normal((size, size), np.float32) for _ in range(2))
        return tuple(matrix.astype(jnp.dtype(dtype)) for matrix in matrices)

    options = compiler.options(types.SimpleNamespace(dtype=dtype))  # those of a model of this dtype
    return Program(jax.jit(jnp.matmul, compiler_options=options), arguments)


def forward_macs(model: Any, variables: Any, pixels: tuple[int, int, int]) -> int | None:
    """Multiply-accumulates of the forward pass for one image `[H, W, C]`; None if they cannot be counted."""
    try:
        return multiply_accumulates(
            lambda variables, image: model.apply(variables, image, train=False)[0],
            variables,
            jax.ShapeDtypeStruct((1, *pixels), jnp.float32),
        )
    except ValueError:  # a kernel that runs its body once a block
        return None


def abstract_variables(model: Any, pixels: tuple[int, int, int]) -> Any:
    """The variables of a model for images `[H, W, C]` by shape; `UserError` if it takes no such images."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *pixels), jnp.float32))


def draw(abstract: Any) -> Any:
    """Numbers in place of shapes under which activations neither vanish nor overflow.

    Time must not depend on what the numbers are, and it does where they become subnormal, infinite or NaN:
    so matrices keep the scale of their inputs, norms change nothing, running variances are 1.
    """
    rng = np.random.default_rng(0)

    def leaf(path: tuple, spec: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name in _ZERO or name in _ONE:
            return np.full(spec.shape, name in _ONE, spec.dtype)
        inputs = math.prod(spec.shape[:-1])
        return (rng.standard_normal(spec.shape, np.float32) / math.sqrt(max(inputs, 1))).astype(spec.dtype)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def _strong(leaf: Any) -> Any:
    """A Python number as the array that it is on the device."""
    if isinstance(leaf, jax.Array):
        return leaf
    return np.asarray(leaf, np.int32 if isinstance(leaf, int) else np.float32)
