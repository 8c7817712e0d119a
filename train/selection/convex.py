"""One coreset for a whole training of logistic regression, by exact second-order information (AdaCore).

No command uses this yet; AdaCore's convex experiment will.
"""

import numpy as np

from latebloom.train.selection.budgets import in_proportion
from latebloom.train.selection.coreset import Coreset
from latebloom.train.selection.facility import Points, facility_location_by_class

__all__ = ["logistic_coreset", "newton_directions"]


def logistic_coreset(
    x: np.ndarray, y: np.ndarray, parameters: np.ndarray, budget: int, damping: float, *, l2: float = 0.0
) -> Coreset:
    """Select points whose weighted Newton directions stand for those of all, per class in proportion to its size.

    The loss of a point is ln(1 + exp(-(2 y - 1) (w . x + b))) + l2 |w, b|^2 / 2. AdaCore (arXiv 2207.13887), section
    5.1, where the curvature is computed once and one coreset serves all of training (its loss is misprinted there with
    a minus).

    Args:
        x: float (N, D).
        y: int (N,), 0 or 1.
        parameters: float (D + 1,), w followed by b, where gradients and Hessians are computed, such as all 0.
        budget: points to select, 2 (one a class) to N.
        damping: > 0, added to each point's Hessian, which has rank 1.
        l2: >= 0.

    Returns:
        Rows and weights; the weights sum to the class size within each class.

    Raises:
        ValueError: as `newton_directions`, or a budget out of range.
    """
    directions = newton_directions(x, y, parameters, damping, l2=l2)
    labels = y.astype(np.int64)
    sizes = np.bincount(labels, minlength=2)
    least = int((sizes > 0).sum())
    if not least <= budget <= len(x):
        raise ValueError(f"budget {budget} of {len(x)} points; expected {least} (one a class) to {len(x)}")
    medoids = facility_location_by_class(Points(directions), labels, in_proportion(sizes, budget))
    return Coreset(np.concatenate([m.indices for m in medoids]), np.concatenate([m.weights for m in medoids]))


def newton_directions(
    x: np.ndarray, y: np.ndarray, parameters: np.ndarray, damping: float, *, l2: float = 0.0
) -> np.ndarray:
    """Each point's gradient over its damped Hessian, float32 (N, D + 1); the arguments are `logistic_coreset`'s.

    With u = [x, 1] and s = sigmoid(w . x + b), the gradient is (s - y) u + l2 [w, b] and the Hessian
    s (1 - s) u u^T + (l2 + damping) I (AdaCore, appendix B.3), whose inverse is one line by Sherman and Morrison.

    Raises:
        ValueError: shapes that do not match, labels that are not 0 or 1, numbers that are not finite, or a damping
            that is not above 0.
    """
    if x.ndim != 2 or y.shape != x.shape[:1] or parameters.shape != (x.shape[1] + 1,) or len(x) == 0:
        raise ValueError(
            f"expected x (N, D), y (N,), parameters (D + 1,), got {x.shape}, {y.shape}, {parameters.shape}"
        )
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"y must be 0 or 1, got {y.min()}..{y.max()}")
    if not (np.isfinite(x).all() and np.isfinite(parameters).all()):
        raise ValueError("x or the parameters are not finite; remove such points, or start from other parameters")
    if not (damping > 0 and l2 >= 0):
        raise ValueError(f"damping {damping} and l2 {l2}; expected damping > 0 and l2 >= 0")
    u = np.pad(x.astype(np.float64), ((0, 0), (0, 1)), constant_values=1)  # (N, D + 1)
    half = np.tanh(u @ parameters / 2) / 2  # s - 1/2, without overflow
    gradient = (half + 0.5 - y)[:, None] * u + l2 * parameters
    curvature = 0.25 - np.square(half)  # s (1 - s), (N,)
    scale = l2 + damping
    along = curvature * (u * gradient).sum(1) / (scale + curvature * np.square(u).sum(1))  # (N,)
    result: np.ndarray = ((gradient - along[:, None] * u) / scale).astype(np.float32)
    return result
