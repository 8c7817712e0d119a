"""Gradients and Hessian diagonals of each example: the last layer's in closed form, others by autograd.

With logits z = W h + b, softmax probabilities p and one-hot labels y, cross-entropy of one example has the gradients
p - y in b and (p - y) h^T in W, and the Hessian diagonals p (1 - p) in b and p_c (1 - p_c) h_d^2 in W. All are of the
loss of one example, in eval mode, so they do not depend on the size or the other examples of a batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from latebloom.data.seeds import torch_rng
from latebloom.train.evaluate import eval_mode, softmax

__all__ = [
    "Moments",
    "curvatures",
    "gradient_norms",
    "hutchinson",
    "last_layer_curvatures",
    "last_layer_gradients",
    "residuals",
    "varying_curvature",
]


def residuals(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """p - y, the gradient of cross-entropy in the logits: float32 (N, C) of logits (N, C) and labels int (N,).

    Raises:
        ValueError: logits that are not finite, or labels that do not fit them.
    """
    _check_logits(logits)
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels are {labels.shape} for logits {logits.shape}; give one label for each row of logits")
    if len(labels) and not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise ValueError(f"labels must lie in 0..{logits.shape[1] - 1}, got {labels.min()}..{labels.max()}")
    rows = np.arange(len(labels))
    residual = softmax(logits)
    # p_y - 1 would be rounded to 0 for a confident example; minus the sum of the others is not.
    residual[rows, labels] = 0
    residual[rows, labels] = -residual.sum(1)
    return residual.astype(np.float32)


def curvatures(logits: np.ndarray) -> np.ndarray:
    """p (1 - p), the diagonal of cross-entropy's Hessian in the logits: float32 (N, C), in [0, 0.25]."""
    _check_logits(logits)
    p = softmax(logits)
    result: np.ndarray = (p * (1 - p)).astype(np.float32)
    return result


def _check_logits(logits: np.ndarray) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits are {logits.shape}, expected (N, C); give one row an example")
    if not np.isfinite(logits).all():
        raise ValueError(f"{int((~np.isfinite(logits)).any(1).sum())} rows of the logits are not finite")


def _with_one(features: np.ndarray) -> np.ndarray:
    """[feature, 1]: (N, D + 1), float32 or wider, since squares of float16 overflow; 1 is the input of the bias."""
    if not np.isfinite(features).all():
        raise ValueError(f"{int((~np.isfinite(features)).any(1).sum())} rows of the features are not finite")
    wide = features.astype(np.promote_types(features.dtype, np.float32), copy=False)
    return np.concatenate([wide, np.ones((len(wide), 1), wide.dtype)], 1)


def gradient_norms(residual: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
    """2-norm of each example's gradient, float32 (N,): of p - y, or of the whole last layer where features are given.

    The norm of an outer product is the product of the norms, so no array of size C x D is made.

    Args:
        residual: float (N, C), from `residuals`.
        features: float (N, D), the last layer's input without the bias's 1.
    """
    norms = np.linalg.norm(residual.astype(np.float64), axis=1)
    if features is not None:
        norms *= np.linalg.norm(_with_one(features).astype(np.float64), axis=1)
    result: np.ndarray = norms.astype(np.float32)
    return result


def last_layer_gradients(residual: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The gradients of the last layer's weights and bias, written out: float32 (N, C * (D + 1)).

    Entry c * (D + 1) + d is (p - y)_c [h, 1]_d. For small problems and tests: N * C * D floats.
    """
    outer = residual[:, :, None] * _with_one(features)[:, None, :]  # (N, C, D + 1)
    result: np.ndarray = outer.reshape(len(residual), -1).astype(np.float32)
    return result


def last_layer_curvatures(logits: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The Hessian diagonals p_c (1 - p_c) [h, 1]_d^2, written out and laid out as `last_layer_gradients`."""
    outer = curvatures(logits)[:, :, None] * np.square(_with_one(features))[:, None, :]  # (N, C, D + 1)
    result: np.ndarray = outer.reshape(len(logits), -1).astype(np.float32)
    return result


def varying_curvature(logits: np.ndarray, features: np.ndarray, k: int | float) -> np.ndarray:
    """The k dimensions of the last layer's Hessian diagonal that vary most over these examples (LCMat-S).

    The variance of q_c x_d, with q = p (1 - p) and x = [h, 1]^2, is E[q_c^2 x_d^2] - E[q_c x_d]^2: two small matrix
    products in float64 instead of n * C * D numbers. Loss-Curvature Matching (arXiv 2303.04449), section 3.2, Eq. 10.

    Args:
        logits: float (n, C) of the examples of one class.
        features: float (n, D).
        k: an int is a number of dimensions (all C * (D + 1) if it is larger); a float is a fraction of them in (0, 1],
            rounded up.

    Returns:
        float32 (n, K), most varying first, ties to the lowest dimension.

    Raises:
        ValueError: k out of range, or rows that do not match or are not finite.
    """
    if len(logits) != len(features):
        raise ValueError(f"{len(logits)} rows of logits, but {len(features)} of features")
    if len(logits) == 0:
        raise ValueError("no examples, so no dimension varies")
    q = curvatures(logits).astype(np.float64)  # (n, C)
    x = np.square(_with_one(features).astype(np.float64))  # (n, D + 1)
    dimensions = q.shape[1] * x.shape[1]
    if isinstance(k, int):
        if k < 1:
            raise ValueError(f"k = {k} dimensions; expected at least 1")
        count = min(k, dimensions)
    else:
        if not 0 < k <= 1:
            raise ValueError(f"k = {k} as a fraction of the dimensions; expected 0 < k <= 1")
        count = math.ceil(k * dimensions)
    n = len(q)
    variance = np.square(q).T @ np.square(x) / n - np.square(q.T @ x / n)  # (C, D + 1)
    flat = variance.ravel()
    # Only the dimensions that may be chosen are sorted: for 1,000 classes, sorting all would take most of the time.
    least = np.partition(flat, dimensions - count)[dimensions - count]
    high = np.flatnonzero(flat >= least)
    chosen = high[np.argsort(-flat[high], kind="stable")[:count]]
    classes, inputs = np.divmod(chosen, x.shape[1])
    return (q[:, classes] * x[:, inputs]).astype(np.float32)


def _chosen(model: nn.Module, names: Sequence[str] | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The chosen parameters, in the order asked, and all other tensors of the model."""
    known = {name: parameter.detach() for name, parameter in model.named_parameters()}
    missing = [name for name in names or () if name not in known]
    if missing:
        raise ValueError(f"{type(model).__name__} has no parameter {missing[0]!r}; it has {', '.join(known)}")
    chosen = {name: known.pop(name) for name in (list(known) if names is None else names)}
    return chosen, known | dict(model.named_buffers())


def hutchinson(
    model: nn.Module,
    inputs: Tensor,
    loss: Callable[[Tensor], Tensor],
    seed: int,
    *,
    names: Sequence[str] | None = None,
    draws: int = 1,
) -> dict[str, Tensor]:
    """Estimate the diagonal of a loss's Hessian in any parameters: the mean of z * (H z) over Rademacher z.

    Exact if H is diagonal, else unbiased. In eval mode. AdaCore (arXiv 2207.13887) Eq. 8; AdaHessian (arXiv 2006.00719)
    Eq. 4. No command uses this yet: AdaCore with the curvature of a whole network will.

    Args:
        inputs: what the model takes, on its device.
        loss: of the model's output, a scalar; a sum over examples, not their mean, so that results add up.
        seed: z is drawn on the CPU, from one stream per draw and parameter name.
        names: parameters by name; None takes all.
        draws: z's to average, >= 1.

    Raises:
        ValueError: an unknown name, or no draws.
    """
    if draws < 1:
        raise ValueError(f"draws = {draws}; expected at least 1")
    chosen, rest = _chosen(model, names)
    gradient = grad(lambda parameters: loss(functional_call(model, parameters | rest, (inputs,))))

    def along(parameters: dict[str, Tensor], z: dict[str, Tensor]) -> Tensor:
        """z . gradient. Its gradient is H z, by reverse mode twice, which every operation supports."""
        slopes = gradient(parameters)
        return torch.stack([(z[name] * slopes[name]).sum() for name in z]).sum()

    diagonal = {name: torch.zeros_like(parameter) for name, parameter in chosen.items()}
    with eval_mode(model):
        for draw in range(draws):
            z = {name: _rademacher(parameter, seed, draw, name) for name, parameter in chosen.items()}
            product = grad(along)(chosen, z)
            for name in chosen:
                diagonal[name] += z[name] * product[name] / draws
    return diagonal


def _rademacher(like: Tensor, seed: int, draw: int, name: str) -> Tensor:
    bits = torch.randint(0, 2, like.shape, generator=torch_rng(seed, "hutchinson", draw, name))
    return (2 * bits - 1).to(like)


class Moments:
    """AdaCore's running averages of each example's gradient and curvature, both corrected for their start at zero.

    The gradient's is a mean with decay b1 (AdaCore, arXiv 2207.13887, Eq. 7, which prints b2 in two places where b1 is
    meant), the curvature's a root mean square with decay b2 (Eq. 9). Values that never change are their own average.
    Updates are counted for each example.
    """

    def __init__(self, size: int, width: int, gradient_decay: float = 0.9, curvature_decay: float = 0.999) -> None:
        """For `size` examples with gradients and curvatures of `width` numbers; decays in [0, 1)."""
        if not (0 <= gradient_decay < 1 and 0 <= curvature_decay < 1):
            raise ValueError(f"decays {gradient_decay} and {curvature_decay}; expected 0 <= decay < 1")
        self.gradient_decay = gradient_decay
        self.curvature_decay = curvature_decay
        self._gradient = np.zeros((size, width), np.float32)
        self._square = np.zeros((size, width), np.float32)
        self._count = np.zeros(size, np.int64)

    def __len__(self) -> int:
        return len(self._count)

    def update(self, rows: np.ndarray, gradients: np.ndarray, curvature: np.ndarray) -> None:
        """Take in gradients and curvature, float (n, width), of the examples `rows`, int (n,), each at most once.

        Raises:
            ValueError: shapes that do not match, a row twice, or numbers that are not finite.
        """
        expected = (len(rows), self._gradient.shape[1])
        if gradients.shape != expected or curvature.shape != expected:
            raise ValueError(f"gradients and curvature are {gradients.shape}, {curvature.shape}, expected {expected}")
        if len(np.unique(rows)) != len(rows):
            raise ValueError("an example is given twice in one update; give each once")
        if not (np.isfinite(gradients).all() and np.isfinite(curvature).all()):
            raise ValueError("gradients or curvature are not finite: the model has diverged; lower its learning rate")
        b1, b2 = self.gradient_decay, self.curvature_decay
        self._gradient[rows] = b1 * self._gradient[rows] + (1 - b1) * gradients
        self._square[rows] = b2 * self._square[rows] + (1 - b2) * np.square(curvature, dtype=np.float32)
        self._count[rows] += 1

    def gradients(self, rows: np.ndarray) -> np.ndarray:
        """float32 (n, width): the bias-corrected mean gradient of the examples `rows`."""
        corrected = self._gradient[rows] / self._weight(self.gradient_decay, rows)
        result: np.ndarray = corrected.astype(np.float32)
        return result

    def curvatures(self, rows: np.ndarray) -> np.ndarray:
        """float32 (n, width), >= 0: the bias-corrected root mean square of the curvature of the examples `rows`."""
        corrected = np.sqrt(self._square[rows] / self._weight(self.curvature_decay, rows))
        result: np.ndarray = corrected.astype(np.float32)
        return result

    def _weight(self, decay: float, rows: np.ndarray) -> np.ndarray:
        """float64 (n, 1): 1 - decay^t."""
        if (self._count[rows] == 0).any():
            raise ValueError(
                f"{int((self._count[rows] == 0).sum())} examples have never been updated; update all first"
            )
        result: np.ndarray = (1 - np.power(float(decay), self._count[rows]))[:, None]
        return result

    def state(self) -> dict[str, np.ndarray]:
        """All arrays, for a checkpoint that `Moments.restored` reads."""
        decays = np.array([self.gradient_decay, self.curvature_decay])
        arrays = {"decays": decays, "gradient": self._gradient, "square": self._square, "count": self._count}
        return {name: array.copy() for name, array in arrays.items()}

    @classmethod
    def restored(cls, state: Mapping[str, np.ndarray]) -> "Moments":
        """The averages as they were when `state` was taken."""
        size, width = state["gradient"].shape
        moments = cls(size, width, *map(float, state["decays"]))
        moments._gradient, moments._square = state["gradient"].copy(), state["square"].copy()
        moments._count = state["count"].copy()
        return moments
