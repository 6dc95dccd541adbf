"""What LayerScale and class attention do for a deep network: at initialisation, and in its first step.

python benchmarks/depth.py --depths 12,36,72,120 --width 96

CaiT with both of its ideas, with either and with neither, on the digits that come with the package. Without
class attention the class token is there from the first block on. By block, before the first step: root
mean square of the tokens after it, and norm of the gradient of its parameters. For the network: loss and
logits before and after one step of AdamW without warm-up. Writes `results/depth.csv` and draws
`docs/images/depth.png`.
"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # runs from a checkout as it is

from benchmarks import measure  # noqa: E402

VARIANTS = {
    "neither": {"layer_scale": None, "class_depth": 0},
    "class attention": {"layer_scale": None},
    "LayerScale": {"class_depth": 0},
    "both": {},
}
PACKAGES = ("jax", "flax", "optax")
PICTURE = ROOT / "docs/images/depth.png"


def main() -> None:
    """Measures, writes the table, draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--depths", default="12,36,72,120")
    parser.add_argument("--width", type=int, default=96, help="a multiple of 48, the size of a head")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="of the one step; weight decay is 0.05")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    measure.pin(args.threads)
    rows = []
    for depth in map(int, args.depths.split(",")):
        for variant, fields in VARIANTS.items():
            rows += measured(variant, fields, depth, args)
            print({name: value for name, value in rows[-1].items() if name != "block"}, flush=True)
    print(measure.write("depth", rows, PACKAGES))
    draw(rows)


def batch(size: int):
    """Images `[size, 8, 8, 3]` in [-1, 1] and labels `[size]`: the first digits."""
    import numpy as np

    from vitjax.data.sources import open_source

    source = open_source("digits", split="train")
    examples = [source[i] for i in range(size)]
    images = np.stack([np.broadcast_to(np.asarray(e["image"]), (8, 8, 3)) for e in examples])
    return (images / 127.5 - 1).astype("float32"), np.asarray([e["label"] for e in examples])


def measured(variant: str, fields: dict, depth: int, args: argparse.Namespace) -> list[dict]:
    """The rows of one network, one a block."""
    import jax
    import jax.numpy as jnp
    import optax

    from vitjax import models

    model = models.create(
        f"cait_s{depth}",
        num_classes=10,
        width=args.width,
        mlp_dim=4 * args.width,
        num_heads=args.width // 48,
        patch_size=2,
        scan=True,
        **fields,
    )
    optimizer = optax.adamw(args.lr, weight_decay=0.05)

    def loss(params, image, label):
        logits, out = model.apply({"params": params}, image)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), out

    @jax.jit
    def run(key, image, label):
        params = model.init(key, image)["params"]
        (before, out), grads = jax.value_and_grad(loss, has_aux=True)(params, image, label)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        after, moved = loss(optax.apply_updates(params, updates), image, label)
        blocks = jax.tree.leaves(grads["Transformer"]["encoderblock"])
        return {
            "token_rms": rms(out["tokens"], (1, 2, 3)),
            "gradient_norm": jnp.sqrt(sum(jnp.square(g).reshape(depth, -1).sum(1) for g in blocks)),
            "loss_before": before,
            "loss_after": after,
            "logit_rms": rms(out["logits"], None),
            "logit_change_rms": rms(moved["logits"] - out["logits"], None),
        }

    def rms(x, axes):
        return jnp.sqrt(jnp.square(x).mean(axes))

    result = run(jax.random.key(0), *batch(args.batch))
    whole = {name: f"{value:.4g}" for name, value in result.items() if value.ndim == 0}
    return [
        {"variant": variant, "depth": depth, "block": block + 1}
        | {name: f"{result[name][block]:.4g}" for name in ("token_rms", "gradient_norm")}
        | whole
        for block in range(depth)
    ]


def draw(rows: list[dict]) -> None:
    """Tokens and gradients by block of the deepest network; by depth, how far one step moves the logits."""
    import matplotlib.pyplot as plt

    depths = sorted({row["depth"] for row in rows})
    figure, (tokens, gradients, change) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for variant, style in zip(VARIANTS, ("-", "--", "-.", ":"), strict=True):
        mine = [row for row in rows if row["variant"] == variant]
        deepest = [row for row in mine if row["depth"] == depths[-1]]
        blocks = [row["block"] for row in deepest]
        tokens.plot(blocks, [float(row["token_rms"]) for row in deepest], style, label=variant)
        gradients.semilogy(blocks, [float(row["gradient_norm"]) for row in deepest], style)
        moved = {row["depth"]: float(row["logit_change_rms"]) for row in mine}
        change.plot(depths, [moved[depth] for depth in depths], style, marker="o")
    tokens.set(title=f"RMS of tokens, depth {depths[-1]}", xlabel="block")
    gradients.set(title=f"norm of the gradient, depth {depths[-1]}", xlabel="block")
    change.set(title="RMS change of logits by one step", xlabel="depth", xticks=depths, ylim=0)
    tokens.legend()
    figure.savefig(PICTURE, dpi=100)
    print(PICTURE)


if __name__ == "__main__":
    main()
