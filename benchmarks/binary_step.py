"""What binary layers cost: a training step of BinaryViT against the same network in full precision.

Programs that take turns in one process, each a step with softmax cross-entropy and AdamW on the same size of
batch:

  float      `binaryvit_s` with precision="float"
  binary     `binaryvit_s`
  official   the official PyTorch network, with --official

The goals are a binary step of at most 1.35 times the float one, and of at most 0.8 times the official one.

  python benchmarks/binary_step.py --batch 4 --threads 1
  git clone https://github.com/Phuoc-Hoan-Le/BinaryViT
  python benchmarks/binary_step.py --batch 4 --threads 1 --official BinaryViT

`--official` needs torch, timm and transformers besides vitjax. Of the checkout, `transformer/` is run.
"""

import argparse
import importlib
import json
import pathlib
import statistics
import sys
import time
import types
from collections.abc import Callable

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent)]  # runs from a checkout as it is

from benchmarks import measure  # noqa: E402
from benchmarks.train_step import stand_in_for_torchvision, torch_call  # noqa: E402
from vitjax.host_memory import keep_freed_memory  # noqa: E402
from vitjax.main import keep_compiled_programs  # noqa: E402

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "timm", "transformers")
CLASSES = 1000


def main() -> None:
    """Measures and writes `results/binary_step_{device}.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="binaryvit_s", help="name of the registry")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224, help="pixels of a side")
    parser.add_argument("--official", type=pathlib.Path, help="checkout of the official repository")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=9)
    args = parser.parse_args()
    if args.device == "cpu":
        measure.pin(args.threads)
        keep_freed_memory()  # vitjax.main does; PyTorch shares the process, so it has the benefit too
    keep_compiled_programs()
    # One thread: CPU seconds, which other programs disturb little. More: wall seconds on an idle machine.
    cpu_clock = args.device == "cpu" and args.threads == 1
    clock = time.process_time if cpu_clock else time.perf_counter
    runs = {name: vitjax_step(name, args) for name in ("float", "binary")}
    if args.official:
        runs["official"] = official_step(args)
    seconds = measure.interleave(runs, args.repetitions, clock)
    rows = []
    for name, times in seconds.items():
        row = dict(model=args.model, pixels=args.size, batch=args.batch, threads=args.threads)
        row |= dict(repetitions=args.repetitions, clock="cpu" if cpu_clock else "wall", program=name)
        row["milliseconds"] = round(1e3 * statistics.median(times), 1)
        for other in ("float", "official"):
            found = measure.ratio(times, seconds[other]) if other in seconds else {}
            row |= {f"{key} over {other}": value for key, value in found.items()}
        rows.append(row)
        print(row, flush=True)
    print(measure.write(f"binary_step_{args.device}", rows, PACKAGES))


def vitjax_step(precision: str, args: argparse.Namespace) -> Callable[[], None]:
    """Returns a call of one training step of vitjax."""
    from vitjax import models
    from vitjax.analysis import programs

    module = models.create(args.model, num_classes=CLASSES, precision=precision)
    shape = (args.batch, args.size, args.size, 3)
    variables = programs.abstract_variables(module, shape[1:])
    return programs.training_step(module, variables, shape, CLASSES).start()


def official_step(args: argparse.Namespace) -> Callable[[], None]:
    """Returns the same for the official network: that of `run_binaryvit-small-patch4-224.sh`."""
    stand_in_for_torchvision()
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sys.path[:0] = [str(args.official)]
    network = importlib.import_module("transformer.modeling_vit_extra_res_pyramid").ViTForImageClassification

    class Logits(network):
        def forward(self, image):
            return super().forward(image).logits

    shape = (args.batch, 3, args.size, args.size)
    module = Logits(official_config(args))
    return torch_call(module, "train", shape, args.device, "float32", compiled=False)


def official_config(args: argparse.Namespace) -> types.SimpleNamespace:
    """What the official script's configuration and options come to."""
    import torch

    class BatchNorm(torch.nn.BatchNorm1d):
        """Of the channels that are the last axis, by transposing, as in the official `BatchNormT`."""

        def forward(self, x):
            return super().forward(x.transpose(-1, -2)).transpose(-1, -2)

    published = json.loads((args.official / "configs/binaryvit-small-patch4-224/config.json").read_text())
    options = dict(weight_bits=1, input_bits=1, some_fp=False, avg_res3=True, avg_res5=True)
    options |= dict(image_size=args.size, num_labels=CLASSES, norm_layer=BatchNorm, layer_norm_eps=1e-5)
    options |= dict(drop_path=0.0, disable_layerscale=False, enable_cls_token=False)
    defaults = dict(chunk_size_feed_forward=0, output_attentions=False, output_hidden_states=False)
    return types.SimpleNamespace(**published | options | defaults, use_return_dict=True)


if __name__ == "__main__":
    main()
