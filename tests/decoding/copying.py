"""A model that has nothing to learn: a target is its source, spelt backwards. And what a run of it leaves."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitjax.checkpoint import Checkpointer
from vitjax.data.text.vocabulary import Vocabulary

# Words of which all letters are pieces, so that a word backwards is spelt by pieces, too.
WORDS = ("ab", "ba", "abc", "bca", "ca", "cab", "a", "b", "c", "bac", "acb")
LINES = [f"{x} {y} {z}" for x in WORDS for y in WORDS for z in WORDS]


class Copying(nn.Module):
    """Says the tokens of the source from its last to its first; `sure` is how sure it is of each."""

    num_classes: int | None = None

    @nn.compact
    def __call__(self, inputs, decoder_inputs, train=False):
        sure = self.param("sure", nn.initializers.constant(9.0), (1,))
        return sure * jax.nn.one_hot(decoder_inputs, self.num_classes), {}

    def encode(self, inputs, *, positions=None, segments=None):
        assert inputs.shape == segments.shape
        return inputs

    def start_cache(self, encoded, inputs_segments, max_length):
        del max_length
        return {
            "source": encoded,
            "size": inputs_segments.sum(axis=1),
            "position": jnp.zeros(len(encoded), jnp.int32),
        }

    @nn.compact
    def decode_step(self, tokens, cache):
        sure = self.param("sure", nn.initializers.constant(9.0), (1,))
        rows, position = jnp.arange(len(tokens)), cache["position"]
        place = cache["size"] - 2 - position  # the last piece stands before the end
        piece = cache["source"][rows, jnp.maximum(place, 0)]
        end = cache["source"][rows, jnp.maximum(cache["size"] - 1, 0)]
        said = jnp.where(place < 0, end, piece)
        return sure * jax.nn.one_hot(said, self.num_classes), cache | {"position": position + 1}


def vocabulary():
    return Vocabulary.train(LINES, 18)


def backwards(vocabulary, line):
    """What the model should make of a line."""
    return vocabulary.decode(vocabulary.encode([line])[0][::-1])


def leave_a_run(workdir, words, *, length=12, steps=(3, 7), **config):
    """Writes what a run of the model on text would have: config, vocabulary, checkpoints."""
    workdir.mkdir(parents=True, exist_ok=True)
    words.write(workdir / "vocabulary.model")
    text = dict(languages=("en", "de"), vocab_size=len(words), length=length)
    config = dict(input={}, model=dict(name="copying.Copying"), text=text) | config
    (workdir / "config.json").write_text(json.dumps(config))
    fingerprint = {"text.vocabulary.checksum": words.checksum}
    with Checkpointer(
        workdir / "checkpoints", fingerprint=fingerprint, keep_last=len(steps) or 1
    ) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"params": {"sure": jnp.full(1, float(step))}}, {"val/bleu": 10.0 - step})
            checkpoints.wait()
    return workdir
