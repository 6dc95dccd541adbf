"""Images per second in inference and training: vitjax against timm's same model in PyTorch.

vitjax runs what `python -m vitjax.analysis.throughput` times: the forward pass on float images, and the step
of `vitjax.train` (softmax cross-entropy, AdamW, state donated). PyTorch, eager and compiled, runs timm's
model of this size with the same loss and fused AdamW. The three take turns in one process with equally many
threads; a turn begins with an untimed call. Models come one after the other, each gone before the next.

With one thread, seconds are those of the CPU, which other programs disturb little; otherwise of the wall.

  python benchmarks/throughput_timm.py --batch 8 --train_batch 8 --threads 1 --rounds 5

Needs torch and timm besides vitjax; torchvision is stood in for as in train_step.py.
"""

import argparse
import gc
import pathlib
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent)]  # runs from a checkout as it is

from benchmarks import measure  # noqa: E402
from benchmarks.train_step import stand_in_for_torchvision, torch_call  # noqa: E402
from vitjax.errors import UserError  # noqa: E402
from vitjax.host_memory import keep_freed_memory  # noqa: E402
from vitjax.main import keep_compiled_programs  # noqa: E402

# Our name: timm's, pixels of a side, and the fields that make ours the same function.
MODELS = {
    "deit_s16": ("deit_small_patch16_224", 224, {}),
    "deit_b16": ("deit_base_patch16_224", 224, {}),
    "cait_s24": ("cait_s24_224", 224, {}),
    "swin_t": ("swin_tiny_patch4_window7_224", 224, {}),
    "resnet50": ("resnet50", 224, {}),
    "regnety_16gf": ("regnety_160", 224, {}),
    "efficientnet_b4": ("efficientnet_b4", 380, {}),
    "vit_s16": ("vit_small_patch16_224", 224, {"gelu": "erf"}),
}
DEFAULT = "deit_s16,deit_b16,cait_s24,resnet50,regnety_16gf,efficientnet_b4"
FRAMEWORKS = ("torch eager", "torch compiled", "vitjax")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "timm")


def main() -> None:
    """Measures and writes `results/throughput_timm_{device}.csv`, anew after each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default=DEFAULT, help=f"of {', '.join(MODELS)}")
    parser.add_argument("--modes", default="inference,training")
    parser.add_argument("--batch", type=int, default=8, help="images in a call of inference")
    parser.add_argument("--train_batch", type=int, default=8, help="images in a training step")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of calls in a turn, at least one call")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--skip_compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--channels_last", action="store_true", help="PyTorch's other layout of images")
    args = parser.parse_args()
    if args.device == "cpu":
        measure.pin(args.threads)
        keep_freed_memory()  # vitjax.main does; PyTorch shares the process, so it has the benefit too
    keep_compiled_programs()  # training steps of deep convolutional networks take XLA minutes to compile
    stand_in_for_torchvision()
    rows = []
    for model in args.models.split(","):
        for mode in args.modes.split(","):
            rows += compare(model, mode, args)
            forget_compiled()
            if rows:
                print(measure.write(f"throughput_timm_{args.device}", rows, PACKAGES), flush=True)


def forget_compiled() -> None:
    """Frees what PyTorch keeps of compiled models."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
    gc.collect()


def compare(model: str, mode: str, args: argparse.Namespace) -> list[dict]:
    """Returns one row a framework; `ratio` is its seconds a call over those of PyTorch eager."""
    from vitjax.analysis.timing import in_turns

    batch = args.batch if mode == "inference" else args.train_batch
    starts = {}
    for framework in FRAMEWORKS:
        if framework != "torch compiled" or not args.skip_compile:
            try:
                starts[framework] = start_of(framework, model, mode, batch, args)
            except UserError as error:
                print(f"{model}: {error}", flush=True)
                return []
    cpu_clock = args.device == "cpu" and args.threads == 1
    clock = time.process_time if cpu_clock else time.perf_counter
    times, failed = in_turns(starts, rounds=args.rounds, seconds=args.seconds, clock=clock)
    for framework, why in failed.items():
        print(f"{model}, {mode}, {framework}: {why}", flush=True)
    seconds = {name: [sum(calls) / len(calls) for calls in found.rounds] for name, found in times.items()}
    rows = []
    for framework, found in times.items():
        row = dict(model=model, pixels=MODELS[model][1], mode=mode, dtype=args.dtype, batch=batch)
        row |= dict(
            threads=args.threads,
            rounds=args.rounds,
            clock="cpu" if cpu_clock else "wall",
            framework=framework,
        )
        row |= dict(calls=found.calls, images_per_s=round(found.rate(batch), 3))
        row |= measure.ratio(seconds[framework], seconds["torch eager"]) if "torch eager" in seconds else {}
        rows.append(row)
        print(row, flush=True)
    return rows


def start_of(framework: str, model: str, mode: str, batch: int, args: argparse.Namespace):
    """Returns `start() -> call` of one way to run a model."""
    name, pixels, fields = MODELS[model]
    if framework == "vitjax":
        from vitjax import models
        from vitjax.analysis import programs

        module = models.create(model, num_classes=1000, dtype=args.dtype, **fields)
        shape = (batch, pixels, pixels, 3)
        variables = programs.abstract_variables(module, shape[1:])
        if mode == "inference":
            return programs.inference(module, variables, shape).start
        return programs.training_step(module, variables, shape, 1000).start
    import timm
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=1000)
    if args.channels_last:
        module = module.to(memory_format=torch.channels_last)
    call = torch_call(
        module,
        "forward" if mode == "inference" else "train",
        (batch, 3, pixels, pixels),
        args.device,
        args.dtype,
        compiled=framework == "torch compiled",
    )
    return lambda: call


if __name__ == "__main__":
    main()
