"""Images per second of forward pass and training step: vitjax against timm's same model in PyTorch.

vitjax runs what `vitjax.main` runs: `models.create`, `tasks.classify`, `optim.create`, `make_step` jitted
with the options of `vitjax.compiler`, uint8 images in, loss and gradient norm out. PyTorch runs timm's
`VisionTransformer` of the same size with the same GELU, softmax cross-entropy and fused AdamW, eager and
compiled, on float images. All take turns in one process.

  python benchmarks/train_step.py --models ti16,s32 --batch 8 --threads 1 --repetitions 15

Needs torch and timm besides vitjax. (timm imports torchvision only for image transforms, which are not used
here: where it is missing, an empty stand-in does.)
"""

import argparse
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import statistics
import sys
import time
import types

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent)]  # runs from a checkout as it is

from benchmarks import measure  # noqa: E402
from vitjax.host_memory import keep_freed_memory  # noqa: E402

SIZES = {"ti16": (192, 12, 3, 16), "s32": (384, 12, 6, 32), "s16": (384, 12, 6, 16), "b16": (768, 12, 12, 16)}
LR, DECAY = 1e-3, 1e-4
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "timm")


def main() -> None:
    """Measures and writes `results/train_step_{device}.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="ti16,s32,s16,b16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--gelu", choices=("tanh", "erf"), default="tanh")
    parser.add_argument("--skip_compile", action="store_true", help="leave torch.compile out")
    args = parser.parse_args()
    if args.device == "cpu":
        measure.pin(args.threads)
        keep_freed_memory()  # vitjax.main does; PyTorch shares the process, so it has the benefit too
    rows = []
    for model in args.models.split(","):
        for mode in ("forward", "train"):
            rows += compare(model, mode, args)
            print(measure.write(f"train_step_{args.device}", rows, PACKAGES), flush=True)


def compare(model: str, mode: str, args: argparse.Namespace) -> list[dict]:
    """Returns one row a way to run `model`; `ratio` is its seconds over those of PyTorch eager."""
    runs = {"torch eager": torch_run(model, mode, args, compiled=False)}
    if not args.skip_compile:
        runs["torch compiled"] = torch_run(model, mode, args, compiled=True)
    runs["vitjax"] = vitjax_run(model, mode, args)
    # One thread: CPU seconds, which other programs disturb little. More: wall seconds on an idle machine,
    # because PyTorch's threads spin while they wait for each other, and spinning counts as CPU time.
    cpu_clock = args.device == "cpu" and args.threads == 1
    clock = time.process_time if cpu_clock else time.perf_counter
    seconds = measure.interleave(runs, args.repetitions, clock)
    rows = []
    for name, times in seconds.items():
        row = dict(model=model, mode=mode, dtype=args.dtype, gelu=args.gelu, batch=args.batch)
        row |= dict(threads=args.threads, repetitions=args.repetitions, framework=name)
        row["clock"] = "cpu" if cpu_clock else "wall"
        row["images_per_s"] = round(args.batch / statistics.median(times), 2)
        row |= measure.ratio(times, seconds["torch eager"])
        rows.append(row)
        print(row, flush=True)
    return rows


def vitjax_run(model: str, mode: str, args: argparse.Namespace):
    """Returns a function that runs one forward pass or training step of vitjax and waits for it."""
    import jax
    import numpy as np

    from vitjax import compiler, models, optim, tasks
    from vitjax.data import pp
    from vitjax.train_state import Hyperparameters, make_init, make_step

    module = models.create(f"vit_{model}", num_classes=1000, dtype=args.dtype, gelu=args.gelu)
    task = tasks.create({"name": "classify", "loss": "softmax_xent"}, module)
    preprocess = pp.parse("value_range(-1, 1)|onehot(1000, key='label', key_result='labels')").device
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (args.batch, 224, 224, 3), np.uint8),
        "label": rng.integers(0, 1000, args.batch).astype(np.int32),
    }
    batch = jax.device_put(batch)
    init = lambda rng: task.init(rng, preprocess(batch, rng))
    optimizer = optim.create(
        jax.eval_shape(init, jax.random.key(0))[0],
        total_steps=1000,
        batch_size=args.batch,
        lr=LR,
        wd=LR * DECAY,
    )
    state = jax.jit(make_init(task, optimizer, preprocess))(batch, jax.random.key(0))
    options = compiler.options(module)
    if mode == "forward":
        predict = lambda state, batch: task.predict(
            state.params, state.model_state, preprocess(batch, jax.random.key(0))
        )[0]
        predict = jax.jit(predict, compiler_options=options)
        return lambda: predict(state, batch).block_until_ready()

    # Metrics are read every 50 steps, as in a run.
    hyper = Hyperparameters(jax.random.key(0), optimizer.hyperparameters, log_every=50, total_steps=1000)
    hyper = jax.device_put(hyper)
    step = make_step(task, optimizer, preprocess)
    step = jax.jit(step, donate_argnums=0, compiler_options=options)

    def run():
        nonlocal state
        state, metrics = step(state, batch, hyper)
        jax.block_until_ready((state, metrics))

    return run


def torch_run(model: str, mode: str, args: argparse.Namespace, *, compiled: bool):
    """Returns the same for timm's model."""
    stand_in_for_torchvision()
    import torch
    from timm.models.vision_transformer import VisionTransformer

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    width, depth, num_heads, patch = SIZES[model]
    gelu = functools.partial(torch.nn.GELU, approximate="tanh" if args.gelu == "tanh" else "none")
    module = VisionTransformer(
        patch_size=patch, embed_dim=width, depth=depth, num_heads=num_heads, act_layer=gelu
    )
    return torch_call(module, mode, (args.batch, 3, 224, 224), args.device, args.dtype, compiled=compiled)


def torch_call(
    module, mode: str, shape: tuple[int, int, int, int], device: str, dtype: str, *, compiled: bool
):
    """Returns a function that runs one forward pass or training step of a PyTorch module and waits for it.

    Args:
      module: of a classifier of 1000 classes.
      mode: `forward` or `train`.
      shape: of the images, `(B, C, H, W)`.
      device: `cpu` or `gpu`.
      dtype: `float32`, or `bfloat16` for automatic mixed precision.
      compiled: by `torch.compile`.
    """
    import torch

    device = "cuda" if device == "gpu" else "cpu"
    module = module.to(device)
    image = torch.randn(*shape, device=device)
    label = torch.randint(0, 1000, shape[:1], device=device)
    forward = torch.compile(module) if compiled else module
    cast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def predict():
        module.eval()
        with torch.inference_mode(), cast:
            forward(image)
        wait()

    if mode == "forward":
        return predict
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=LR, weight_decay=DECAY, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with cast:
            loss = torch.nn.functional.cross_entropy(forward(image).float(), label)
        loss.backward()
        optimizer.step()
        wait()

    return step


def stand_in_for_torchvision() -> None:
    """Lets `import timm` pass without torchvision, none of which runs here."""
    if importlib.util.find_spec("torchvision") is None and not any(
        isinstance(finder, _EmptyTorchvision) for finder in sys.meta_path
    ):
        sys.meta_path.append(_EmptyTorchvision())


class _EmptyTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds any module of torchvision; its attributes are empty classes."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Anything(spec.name)

    def exec_module(self, module):
        pass


class _Anything(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        modes = ("NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")
        return type(name, (), {mode: mode.lower() for mode in modes})


if __name__ == "__main__":
    main()
