"""Sentences per second of beam search: with cached keys and values, without, and with PyTorch's Transformer.

python benchmarks/decoding.py --length 64 --beam 4 --batch 16 --threads 1 --repetitions 5

All have random parameters of the same sizes, and none may end a sentence: each is `--length` tokens. Without
a cache, the decoder goes over a row of `--length` tokens at every step, as a compiled loop of fixed shapes
must; PyTorch's `nn.Transformer`, in eager mode, over the tokens that there are. The encoder runs once in all
of them. Needs torch besides vitjax.
"""

import argparse
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # runs from a checkout as it is

from benchmarks import measure  # noqa: E402

PACKAGES = ("jax", "jaxlib", "flax", "torch")
PAD, EOS, BOS = 0, 1, 2


def main() -> None:
    """Measures and writes `results/decoding.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="transformer_tiny")
    parser.add_argument("--vocab_size", type=int, default=8000)
    parser.add_argument("--length", type=int, default=64, help="tokens of source and target")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--skip_torch", action="store_true")
    args = parser.parse_args()
    measure.pin(args.threads)
    runs = {
        "vitjax, cached": vitjax_run(args, cached=True),
        "vitjax, uncached": vitjax_run(args, cached=False),
    }
    if not args.skip_torch:
        runs["torch nn.Transformer, uncached"] = torch_run(args)
    # PyTorch's threads spin while they wait for each other, which counts as CPU time.
    cpu_clock = args.threads == 1
    clock = time.process_time if cpu_clock else time.perf_counter
    seconds = measure.interleave(runs, args.repetitions, clock, warmup=1)
    rows = []
    for name, times in seconds.items():
        row = dict(model=args.model, vocab_size=args.vocab_size, length=args.length, batch=args.batch)
        row |= dict(beam=args.beam, threads=args.threads, decoder=name, clock="cpu" if cpu_clock else "wall")
        row["sentences_per_s"] = round(args.batch / statistics.median(times), 3)
        rows.append(row | measure.ratio(times, seconds["vitjax, cached"]))
        print(rows[-1], flush=True)
    print(measure.write("decoding", rows, PACKAGES))


def sources(args: argparse.Namespace):
    """Random sentences `[batch, length]` without padding."""
    import numpy as np

    tokens = np.random.default_rng(0).integers(3, args.vocab_size, (args.batch, args.length), np.int32)
    tokens[:, -1] = EOS
    return tokens


def vitjax_run(args: argparse.Namespace, *, cached: bool):
    """Returns a function that decodes all sources and waits for it."""
    import jax
    import jax.numpy as jnp

    from vitjax import models
    from vitjax.decoding import beam

    model = models.create(args.model, num_classes=args.vocab_size)
    inputs = jnp.asarray(sources(args))
    variables = jax.jit(model.init)(jax.random.key(0), inputs, inputs)
    sizes = dict(batch=args.batch, beam=args.beam, vocab_size=args.vocab_size, max_length=args.length)

    def cached_step(variables):
        return lambda tokens, cache: model.apply(variables, tokens, cache, method="decode_step")

    def prefix_step(variables):
        def step(tokens, cache):
            position = cache["position"]
            prefix = cache["prefix"].at[jnp.arange(len(tokens)), position].set(tokens)
            logits = model.apply(variables, cache["encoded"], prefix, method=over_prefix)
            last = jnp.take_along_axis(logits, position[:, None, None], axis=1)[:, 0]
            return last, cache | {"prefix": prefix, "position": position + 1}

        return step

    @jax.jit
    def decode(variables, inputs):
        encoded = model.apply(variables, inputs, method="encode")
        if cached:
            cache = model.apply(variables, encoded, None, args.length, method="start_cache")
            step = cached_step(variables)
        else:
            empty = jnp.full((args.batch, args.length), PAD, jnp.int32)
            position = jnp.zeros(args.batch, jnp.int32)
            cache, step = dict(encoded=encoded, prefix=empty, position=position), prefix_step(variables)
        return beam.search(never_ending(step), cache, bos=BOS, eos=EOS, pad=PAD, **sizes)

    return lambda: jax.block_until_ready(decode(variables, inputs))


def over_prefix(model, encoded, tokens):
    """The model's decoder over whole targets `[N, T]`, given what its encoder made of the sources."""
    import jax.numpy as jnp

    length = tokens.shape[1]
    causal = (jnp.arange(length) <= jnp.arange(length)[:, None])[None, None]
    x = model._embed("targets", tokens, None)
    for block in model.decoder:
        x = block(x, encoded, mask=causal)
    return model._logits(model.decoder_norm(x) if model.has_final_norm else x)


def never_ending(step):
    """The same step, after which no sentence ends."""

    def endless(tokens, cache):
        logits, cache = step(tokens, cache)
        return logits.at[:, EOS].add(-1e4), cache

    return endless


def torch_run(args: argparse.Namespace):
    """Returns the same for `torch.nn.Transformer`, with the same candidates at each step."""
    import torch

    from vitjax import models

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sizes = models.create(args.model, num_classes=args.vocab_size)
    width, beam, vocab = sizes.width, args.beam, args.vocab_size
    module = torch.nn.Transformer(
        width,
        sizes.num_heads,
        sizes.depth,
        sizes.decoder_depth or sizes.depth,
        sizes.mlp_dim,
        batch_first=True,
    ).eval()
    table, places = torch.randn(vocab, width) * width**-0.5, torch.randn(2 * args.length, width)
    embed = lambda ids: table[ids] * width**0.5 + places[: ids.shape[1]]
    inputs = torch.from_numpy(sources(args)).long()

    @torch.inference_mode()
    def decode():
        encoded = module.encoder(embed(inputs)).repeat_interleave(beam, dim=0)
        tokens = torch.full((args.batch * beam, 1), BOS)
        total = torch.full((args.batch, beam), -torch.inf)
        total[:, 0] = 0
        first = torch.arange(args.batch)[:, None] * beam
        for length in range(1, args.length + 1):
            mask = torch.nn.Transformer.generate_square_subsequent_mask(length)
            last = module.decoder(embed(tokens), encoded, tgt_mask=mask, tgt_is_causal=True)[:, -1]
            logits = last @ table.T
            logits[:, EOS] -= 1e4
            logp = torch.log_softmax(logits, -1).view(args.batch, beam, vocab)
            best, index = (total[..., None] + logp).view(args.batch, -1).topk(2 * beam)
            total, index = best[:, :beam], index[:, :beam]
            parents = (first + index // vocab).flatten()
            tokens = torch.cat([tokens[parents], (index % vocab).view(-1, 1)], dim=1)
        return tokens

    return decode


if __name__ == "__main__":
    main()
