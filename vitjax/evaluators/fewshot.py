"""Few-shot linear probe in closed form: how good are frozen features?"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vitjax import errors
from vitjax.evaluators import Context, inputs

BIAS = 100.0  # the constant feature: so large that its weight is almost not regularised


class FewShot:
    """Ridge regression from the features of k examples a class, big_vision's `fewshot_lsr`.

    For each seed s, `np.random.default_rng(s)` permutes the training examples of each class, in class order,
    and the first k of each are taken. Their features are whitened by their own mean and (std + 1e-5), a
    constant feature 100 is appended, the targets are +1 for the class and -1 for the others, and the
    regression with penalty `l2_reg` is solved through an eigendecomposition (in float64, big_vision:
    float32). The metrics are the accuracies on the test split: `{dataset}_{k}shot-seed-{s}`, and their mean
    `{dataset}_{k}shot`.
    """

    def __init__(
        self,
        context: Context,
        *,
        datasets: Mapping[str, Sequence[str]],
        pp: str,
        batch_size: int,
        shots: Sequence[int] = (1, 5, 10, 25),
        l2_reg: float = 1024.0,
        num_seeds: int = 3,
        representation_layer: str = "pre_logits",
        label_key: str = "label",
        workers: int = 0,
        use_ema: bool = False,
        on_device: bool = False,
    ):
        """Opens all splits.

        Args:
          context: what the run provides.
          datasets: name in the metrics -> (data, training split, test split).
          pp: the preprocessing string of both splits; it must keep `label_key`.
          batch_size: the global batch size; it affects only speed and memory.
          shots: examples a class, each at least 1.
          l2_reg: the penalty.
          num_seeds: how many draws of examples.
          representation_layer: name in the `out` of `task.predict`, of an array `[B, D]`; `a/b` goes deeper.
          label_key: the class number in a preprocessed batch, int `[B]`.
          workers: processes that decode; 0 for threads of this one.
          use_ema: evaluate the averaged parameters.
          on_device: keep the images in the devices' memory after the first pass; as `config.input.on_device`
            unless given.
        """
        if not shots or any(not _is_number(k) or k < 1 or k % 1 for k in shots):
            raise errors.UserError(
                f"fewshot: shots={shots!r} must be whole numbers from 1 on, such as (1, 5)."
            )
        if not _is_number(l2_reg) or l2_reg <= 0 or not isinstance(num_seeds, int) or num_seeds < 1:
            raise errors.UserError(
                f"fewshot: l2_reg={l2_reg!r} must be above 0 and num_seeds={num_seeds!r} at least 1."
            )
        self.task, self.use_ema, self.label_key = context.task, use_ema, label_key
        self.layer, self.shots, self.l2_reg, self.num_seeds = representation_layer, shots, l2_reg, num_seeds
        self.inputs: dict[str, tuple[_Features, _Features]] = {}
        for name in datasets:
            if isinstance(datasets[name], str) or len(datasets[name]) != 3:
                raise errors.UserError(
                    f"fewshot: datasets.{name}={datasets[name]!r} must be (data, training split, test split)."
                )
            data, *splits = datasets[name]
            opened = [
                inputs.EvalInput(
                    context,
                    data=data,
                    split=split,
                    pp=pp,
                    batch_size=batch_size,
                    workers=workers,
                    on_device=on_device,
                )
                for split in splits
            ]
            self.inputs[name] = (_Features(self, opened[0]), _Features(self, opened[1]))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The means, by which a best checkpoint can be kept."""
        return tuple(f"{name}_{k}shot" for name in self.inputs for k in self.shots)

    def check(self, train_state: Any) -> None:
        """Refuses data that does not fit the model, by shape: `train_state` may be abstract."""
        for features in itertools.chain.from_iterable(self.inputs.values()):
            features.check(*inputs.weights(train_state, use_ema=self.use_ema))

    def run(self, train_state: Any) -> Iterator[tuple[str, float]]:
        """Yields the accuracies; NaN where features are not finite.

        Raises:
          UserError: a class has fewer training examples than the largest number of shots.
        """
        weights = inputs.weights(train_state, use_ema=self.use_ema)
        for name, (train, test) in self.inputs.items():
            x_train, y_train = train(*weights)
            x_test, y_test = test(*weights)
            num_classes = train.input.source.num_classes
            _check_enough(y_train, num_classes, max(self.shots), train.input)
            accuracies: dict[int, list[float]] = {k: [] for k in self.shots}
            for seed in range(self.num_seeds):
                order = draw(y_train, num_classes, seed)
                for k in self.shots:
                    chosen = np.concatenate([members[:k] for members in order])
                    picked = x_train[chosen], y_train[chosen]
                    value = probe_accuracy(
                        *picked, x_test, y_test, num_classes=num_classes, l2_reg=self.l2_reg
                    )
                    accuracies[k].append(value)
                    yield f"{name}_{k}shot-seed-{seed}", value
            for k, values in accuracies.items():
                yield f"{name}_{k}shot", float(np.mean(values))


class _Features:
    """Features and labels of one split."""

    def __init__(self, evaluator: FewShot, split: inputs.EvalInput):
        self.evaluator, self.input = evaluator, split
        self._step = inputs.replicated_jit(self._extract, split)

    def check(self, params: Any, model_state: Any) -> None:
        """Traces the extraction by shape."""
        self.input.check(self._step, params, model_state)

    def __call__(self, params: Any, model_state: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns features float64 `[N, D]` and labels int `[N]`, in the order of the source."""
        batches = list(self.input.map(self._step, params, model_state))
        features, labels, mask, ids = (np.concatenate(column) for column in zip(*batches, strict=True))
        rows = np.flatnonzero(mask)
        rows = rows[np.argsort(ids[rows], kind="stable")]  # the draw of examples depends on their order
        return features[rows].astype(np.float64), labels[rows]

    def _extract(self, params: Any, model_state: Any, batch: Any) -> tuple[Any, ...]:
        evaluator, mask, ids = self.evaluator, batch["_mask"], batch["_id"]
        batch = self.input.on_device(batch)
        what, remedy = f"A batch of {self.input.name}", "The preprocessing string must keep it."
        labels = inputs.entry(batch, evaluator.label_key, what=what, remedy=remedy)
        _, out = evaluator.task.predict(params, model_state, batch)
        remedy = "Set representation_layer to one of them."
        features = inputs.entry(out, evaluator.layer, what="The model's output", remedy=remedy)
        if getattr(features, "ndim", 0) != 2 or labels.ndim != 1:
            raise errors.UserError(
                f"fewshot: {evaluator.layer!r} must have the shape [B, D] and {evaluator.label_key!r} [B];"
                f" they have {getattr(features, 'shape', None)} and {labels.shape}."
            )
        return features.astype(jnp.float32), labels, mask, ids


def draw(labels: np.ndarray, num_classes: int, seed: int) -> list[np.ndarray]:
    """Returns for each class its indices in `labels`, in the random order from which shots are taken."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)]


def probe_accuracy(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, *, num_classes: int, l2_reg: float
) -> float:
    """Fits the probe on x `[n, D]`, y `[n]` and returns its accuracy on the test set."""
    if not (np.isfinite(x).all() and np.isfinite(x_test).all()):
        return float("nan")
    weights, bias = fit(x, y, num_classes=num_classes, l2_reg=l2_reg)
    return float(np.mean(np.argmax(x_test @ weights + bias, axis=1) == y_test))


def fit(x: np.ndarray, y: np.ndarray, *, num_classes: int, l2_reg: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights `[D, K]` and bias `[K]` of the probe for features as they are.

    The whitening is folded into them, so that test features need no whitened copy.
    """
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
    x = np.pad((x - mean) / std, ((0, 0), (0, 1)), constant_values=BIAS)
    targets = 2.0 * np.eye(num_classes)[y] - 1.0
    if len(x) >= x.shape[1]:  # (X'X + l2)^-1 X'Y, else the equal X'(XX' + l2)^-1 Y: the smaller matrix
        eigenvalues, q = np.linalg.eigh(x.T @ x)
        left, right = q, q.T @ (x.T @ targets)
    else:
        eigenvalues, q = np.linalg.eigh(x @ x.T)
        left, right = x.T @ q, q.T @ targets
    solution = (left / (eigenvalues + l2_reg)) @ right
    weights = solution[:-1] / std[:, None]
    return weights, BIAS * solution[-1] - mean @ weights


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_enough(labels: np.ndarray, num_classes: int, shots: int, split: inputs.EvalInput) -> None:
    """Raises where a class has fewer examples than shots: accuracies of unequal draws do not compare."""
    counts = np.bincount(labels, minlength=num_classes)
    if counts.min() < shots:
        label = int(counts.argmin())
        names = split.source.class_names
        name = f" ({names[label]})" if label < len(names) else ""
        raise errors.UserError(
            f"fewshot: class {label}{name} has {counts[label]} examples in {split.name}, fewer than {shots}"
            " shots; take a larger split or fewer shots."
        )
