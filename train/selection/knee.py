"""The separating epoch of a training that is still going on."""

from collections.abc import Sequence

import numpy as np

from latebloom.train.selection.slow import separating_epoch, smoothed

__all__ = ["earliest_knee", "knee_so_far"]


def knee_so_far(errors: Sequence[float], horizon: int, patience: int) -> int | None:
    """The separating epoch (from 1), once enough epochs have shown it; None: train on.

    It is `separating_epoch` with the line drawn from the first value to the last one seen, put at the horizon, as if
    the error fell no further. So it is the same where the curve was seen whole. Before, it counts when it lies
    `patience` epochs back and the error there is below a straight line from its first value to 0 at the horizon: an
    error that has not begun to fall has no knee.

    Args:
        errors: training error 0..1 of the epochs 1, 2, ... so far, at most `horizon`.
        horizon: the epochs within which the knee is looked for.
        patience: epochs after the knee, at least 1.
    """
    seen = len(errors)
    if seen >= horizon:
        return separating_epoch(errors)
    if seen < 3:
        return None
    smooth = smoothed(errors)  # (E,)
    share = np.arange(seen) / (horizon - 1)  # of the horizon
    depth = smooth[0] + share * (smooth[-1] - smooth[0]) - smooth
    knee = int(depth.argmax())
    begun = smooth[knee] < smooth[0] * (1 - share[knee])
    return knee + 1 if depth[knee] > 1e-9 and begun and seen - (knee + 1) >= patience else None


def earliest_knee(errors: Sequence[float], horizon: int) -> int:
    """The earliest epoch (from 1) that `knee_so_far` can still give, whatever the later errors are.

    The error falls to 0 at the lowest, and the steeper the line, the earlier its knee. The last value seen is left out,
    since it will be smoothed with the next one.
    """
    if len(errors) < 3:
        return 1
    smooth = smoothed(errors)[:-1]
    return int((-smooth - smooth[0] * np.arange(len(smooth)) / (horizon - 1)).argmax()) + 1
