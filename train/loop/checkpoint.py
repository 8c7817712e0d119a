"""Weights and training state as safetensors: no pickles, so a checkpoint from anywhere cannot run code."""

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from latebloom.data.store import local_file, write_bytes
from latebloom.train.loop.fit import FitState, History

__all__ = ["load_fit", "load_model", "save_fit", "save_model"]


def save_model(path: Path, model: nn.Module) -> None:
    """Write the weights and buffers of one model."""
    write_bytes(path, safetensors.torch.save({n: t.cpu().contiguous() for n, t in model.state_dict().items()}))


def load_model(path: Path, model: nn.Module) -> None:
    """Read weights into a model of the same architecture, in place.

    Raises:
        ValueError: not safetensors, or weights of another model; the message names the file.
    """
    try:
        model.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} does not hold the weights of this classifier: it is no whole .safetensors file ({error})"
        ) from error
    except RuntimeError as error:  # torch names every key
        details = textwrap.shorten(str(error), 240, placeholder=" ...")
        raise ValueError(f"{path} does not hold the weights of this classifier: {details}") from error


def save_fit(path: Path, models: Sequence[nn.Module], state: FitState, key: str) -> None:
    """Write the models and the state of an unfinished training run.

    Args:
        key: digest of everything that the run depends on; `load_fit` ignores a file with another.
    """
    tensors: dict[str, Tensor] = {}
    for m, model in enumerate(models):
        tensors |= {f"{m}.weight.{n}": t.cpu().contiguous() for n, t in model.state_dict().items()}
        tensors |= {f"{m}.slot.{n}": t.cpu().contiguous() for n, t in state.slots[m].items()}
        tensors |= {f"{m}.mixer.{n}": torch.from_numpy(np.asarray(a, order="C")) for n, a in state.mixers[m].items()}
    run = {
        "step": state.step,
        "histories": [dataclasses.asdict(history) for history in state.histories],
        "partial": state.partial.tolist(),
    }
    write_bytes(path, safetensors.torch.save(tensors, {"key": key, "run": json.dumps(run)}))


def load_fit(path: Path, models: Sequence[nn.Module], key: str) -> FitState | None:
    """Read what `save_fit` wrote, the weights into the models; None if there is no file or it has another key.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    if not path.exists():
        return None
    try:
        with local_file(path) as local, safetensors.safe_open(local, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is a damaged checkpoint ({error}); delete it to train from the start") from error
    run = json.loads(metadata["run"])
    for m, model in enumerate(models):
        model.load_state_dict(_under(tensors, f"{m}.weight."))
    return FitState(
        run["step"],
        slots=[_under(tensors, f"{m}.slot.") for m in range(len(models))],
        histories=[History(**history) for history in run["histories"]],
        partial=np.array(run["partial"], np.float64).reshape(-1, 3),
        mixers=[{n: t.numpy() for n, t in _under(tensors, f"{m}.mixer.").items()} for m in range(len(models))],
    )


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
