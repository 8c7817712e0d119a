"""Greedy selection among the examples of one class: vectors in, positions in the order of their selection out.

Ties go to the lowest position. A smaller budget gives a prefix, except in `matching_pursuit`, which may drop a selected
example again. A budget of n or more selects all.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["contextual_diversity", "glister", "herding", "k_center", "matching_pursuit"]

# Below this share of the first correlation, what is left of the target is float32's rounding.
_MATCHED = 1e-6
# A vector this near to the span of the selected ones lies in it, up to rounding.
_DEPENDENT = 1e-10


def herding(features: np.ndarray, budget: int) -> np.ndarray:
    """Examples whose running mean stays near the mean of all, int64 (B,), of features (n, D).

    Herding Dynamical Weights (Welling, 2009), with kernel <x, y>: the t-th example makes |t mu - sum of selected|
    smallest. (DeepCore takes the largest.)
    """
    x = features.astype(np.float64) - features.mean(0, dtype=np.float64)  # mu = 0
    half_square = np.square(x).sum(1) / 2  # (n,)
    selected = np.empty(min(budget, len(x)), np.int64)
    total = np.zeros(x.shape[1])
    for rank in range(len(selected)):
        # |total + x|^2 = |total|^2 + 2 (total . x + |x|^2 / 2)
        selected[rank] = best = int((x @ total + half_square).argmin())
        total += x[best]
        half_square[best] = np.inf
    return selected


def k_center(features: np.ndarray, budget: int, first: int) -> np.ndarray:
    """Examples each of which is the farthest from all before, int64 (B,), of features (n, D), beginning with `first`.

    Active Learning for Convolutional Neural Networks: A Core-Set Approach (arXiv 1708.00489), Alg. 1.
    """
    x = torch.from_numpy(np.ascontiguousarray(features, np.float32))
    # Direct differences: by products, copies of an example would not be at distance 0 from it.
    direct = "donot_use_mm_for_euclid_dist"
    return _farthest(lambda i: torch.cdist(x[i : i + 1], x, compute_mode=direct)[0].numpy(), len(x), budget, first)


def contextual_diversity(logits: np.ndarray, budget: int, first: int) -> np.ndarray:
    """As `k_center`, by KL(p, q) / 2 + KL(q, p) / 2 of probabilities, int64 (B,), of logits (n, C).

    Contextual Diversity for Active Learning (arXiv 2008.05723). log p comes from the logits, so it is finite where p
    is 0 in floating point.
    """
    log_p = F.log_softmax(torch.from_numpy(logits.astype(np.float64)), 1)
    p = log_p.exp()

    def divergence(i: int) -> np.ndarray:
        return ((p - p[i]) * (log_p - log_p[i])).sum(1).mul_(0.5).numpy()  # every term >= 0

    return _farthest(divergence, len(p), budget, first)


def _farthest(distance_to: Callable[[int], np.ndarray], n: int, budget: int, first: int) -> np.ndarray:
    selected = np.empty(min(budget, n), np.int64)
    nearest = np.full(n, np.inf)
    for rank in range(len(selected)):
        selected[rank] = best = int(nearest.argmax()) if rank else first
        np.minimum(nearest, distance_to(best), out=nearest)
        nearest[selected[: rank + 1]] = -1  # never again, also where all that is left is a copy
    return selected


def glister(
    residual: np.ndarray,
    factors: np.ndarray | None,
    budget: int,
    lr: float,
    validation_logits: np.ndarray,
    validation_labels: np.ndarray,
    validation_factors: np.ndarray | None,
) -> np.ndarray:
    """Examples whose gradient step lowers the validation loss most, to first order: int64 (B,).

    GLISTER (arXiv 2012.10630), Alg. 2 (GreedyDSS): argmax <g_i, validation gradient>. After each selection the
    validation gradient is computed again, at the parameters after a step of size `lr` along the selected gradient; for
    biases or a last layer this is exact. (DeepCore never updates it, because of a misspelt keyword.)

    Args:
        residual: float32 (n, C), p - y.
        factors: float32 (n, D + 1), [feature, 1], to step the last layer's weights and biases; None: the biases alone.
        lr: > 0.
        validation_logits: float32 (m, C), with labels int (m,) and, where factors are given, factors (m, D + 1).
    """
    # Classes or factors first, examples last: sums and softmax over many short rows are slow.
    a = torch.from_numpy(residual).T.contiguous()  # (C, n)
    h = None if factors is None else torch.from_numpy(factors).T.contiguous()  # (D + 1, n)
    their_h = None if validation_factors is None else torch.from_numpy(validation_factors)  # (m, D + 1)
    z = torch.from_numpy(validation_logits.astype(np.float32)).T.contiguous()  # (C, m), a copy
    y = F.one_hot(torch.from_numpy(validation_labels.astype(np.int64)), len(z)).T.float().contiguous()  # (C, m)
    selected = np.empty(min(budget, a.shape[1]), np.int64)
    left = torch.zeros(a.shape[1])
    for rank in range(len(selected)):
        r = torch.softmax(z, 0).sub_(y)  # (C, m)
        if h is None or their_h is None:
            score = r.mean(1) @ a  # (n,)
        else:
            gradient = (r @ their_h).div_(z.shape[1])  # (C, D + 1)
            score = (gradient @ h).mul_(a).sum(0)  # (n,)
        selected[rank] = best = int((score + left).argmax())
        left[best] = -torch.inf
        if h is None or their_h is None:
            z -= lr * a[:, best, None]
        else:
            z.addr_(a[:, best], their_h @ h[:, best], alpha=-lr)
    return selected


def matching_pursuit(
    vectors: np.ndarray, factors: np.ndarray | None, target: np.ndarray, budget: int, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Few vectors and weights w >= 0 with sum w_i v_i near the target: orthogonal matching pursuit with NNLS.

    Each round selects the vector with the largest positive correlation to what is left of the target. It then solves
    for the weights of all selected vectors, min |sum w_i v_i - target|^2 + ridge |w|^2 over w >= 0, by the active set
    method of Lawson and Hanson: a vector whose weight falls to 0 is dropped and may return. GRAD-MATCH (arXiv
    2103.00123), section 3.

    When no vector correlates any more, the weights are optimal and further vectors would get weight 0. The budget is
    then filled with vectors of weight 0, by falling correlation to what is left. (CORDS fills it with random vectors of
    weight 1, which spoils the match.) Without ridge this happens after at most as many vectors as they have dimensions.

    Args:
        vectors: float32 (n, d).
        factors: float32 (n, e): example i is the outer product vectors_i x factors_i, never written out; None: (n, d).
        target: float (d,), or (d, e) with factors.
        ridge: >= 0.

    Returns:
        Positions int64 (B,) in the order of their selection, and weights float32 (B,).

    Memory: 8 B^2 bytes, with factors 4 n B more.
    """
    v = vectors.astype(np.float64)
    f = None if factors is None else factors.astype(np.float64)
    n, budget = len(v), min(budget, len(v))
    aim = v @ target if f is None else ((v @ target) * f).sum(1)  # (n,): <v_i, target>
    square = np.square(v).sum(1) * (1 if f is None else np.square(f).sum(1))
    inverse = np.zeros(
        (budget, budget)
    )  # of the Gram matrix of the selected ones, plus ridge, in the order of `selected`
    in_place = torch.from_numpy(inverse)
    selected: list[int] = []
    w = np.zeros(0)
    # With factors, the selected rows of the Gram matrix, by slot: a dropped example gives its slot to another.
    rows, spread = np.zeros((0 if f is None else budget, n), np.float32), np.zeros(budget, np.float32)
    slots: list[int] = []
    free, high = list(range(budget))[::-1], 0  # those from `high` on were never used
    barred = np.zeros(n, bool)
    left = aim.copy()  # correlation with what is left of the target
    enough = _MATCHED * max(0.0, float(aim.max(initial=0)))
    for _ in range(3 * budget):  # a dropped example costs a round
        k = len(selected)
        candidates = np.where(barred, -np.inf, left)
        candidates[selected] = -np.inf
        best = int(candidates.argmax())
        if k == budget or not candidates[best] > enough:
            break
        u = v[selected] @ v[best]  # (k,)
        u *= 1 if f is None else f[selected] @ f[best]
        tilt = inverse[:k, :k] @ u
        rest = square[best] + ridge - u @ tilt
        if rest <= _DEPENDENT * (square[best] + ridge):
            barred[best] = True
            continue
        # The inverse by bordering, and the solution from it: O(k^2).
        in_place[:k, :k].addr_(torch.from_numpy(tilt), torch.from_numpy(tilt), alpha=1 / rest)
        inverse[:k, k] = inverse[k, :k] = -tilt / rest
        inverse[k, k] = 1 / rest
        share = (aim[best] - u @ w) / rest
        solved, w = np.append(w - tilt * share, share), np.append(w, 0.0)
        selected.append(best)
        slots.append(free.pop())
        high = max(high, slots[-1] + 1)
        if f is not None:
            rows[slots[-1]] = (v @ v[best]) * (f @ f[best])
        while solved.min(initial=1) <= 0:
            # As far towards the solution as all weights stay >= 0; the first that reaches 0 is dropped.
            falling = np.flatnonzero(solved <= 0)
            steps = w[falling] / np.maximum(w[falling] - solved[falling], np.finfo(float).tiny)
            w += steps.min() * (solved - w)
            gone = int(falling[steps.argmin()])
            k = len(selected)
            kept = np.arange(k) != gone
            column = inverse[:k, gone] / inverse[gone, gone]
            smaller = inverse[:k, :k] - np.outer(column, inverse[gone, :k])
            inverse[: k - 1, : k - 1] = smaller[np.ix_(kept, kept)]
            solved = (solved - column * solved[gone])[kept]
            w = np.maximum(w[kept], 0)
            barred[best] |= gone == k - 1  # only rounding made it a candidate
            selected.pop(gone)
            free.append(slots.pop(gone))
        w = solved
        if f is None:
            left = v @ (target - w @ v[selected])
        else:
            spread[:] = 0
            spread[slots] = w
            left = aim - spread[:high] @ rows[:high]
    left[selected] = np.inf
    others = np.argsort(-left, kind="stable")[len(selected) : budget]
    weights = np.concatenate([w, np.zeros(len(others))]).astype(np.float32)
    return np.concatenate([np.array(selected, np.int64), others]), weights
