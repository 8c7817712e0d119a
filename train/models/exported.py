"""Any classifier as a `.pt2` file: a program of `torch.export.save`, which runs without the code that made it."""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["load_exported"]

_RULES = (
    "it takes float32 (n, C, H, W) from 0 to 1, of any n, and gives logits (n, classes); normalise in its forward, and "
    "export it in eval mode with dynamic_shapes=({0: torch.export.Dim('n')},)"
)


def load_exported(
    file: Path, num_classes: int, image_shape: tuple[int, int, int], device: torch.device, name: str = ""
) -> nn.Module:
    """A classifier for images of this shape (H, W, C). Its features, as `features_of` finds them, are its logits.

    Args:
        file: local.
        name: of the file in messages; empty: its path.

    Raises:
        ValueError: it is no such file, or its program takes or gives something else.
    """
    name = name or str(file)
    try:
        _check_members(file)
        program = torch.export.load(file)
    except Exception as error:  # of zipfile, json, torch
        raise ValueError(f"{name} cannot be read as a program of torch.export ({_line(error)}); {_RULES}") from error
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    model = _Exported(program.module()).to(device)
    height, width, channels = image_shape
    for n in (2, 3):
        images = torch.zeros(n, channels, height, width, device=device)
        try:
            with torch.inference_mode():
                logits = model(images)
        except Exception as error:
            raise ValueError(
                f"{name} does not take {n} images of {channels} x {height} x {width} ({_line(error)}); {_RULES}"
            ) from error
        if not isinstance(logits, Tensor) or logits.shape != (n, num_classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"{name} gives {got} for {n} images, expected logits {(n, num_classes)}; {_RULES}")
    return model.eval()


# What an exported program of tensors consists of: its graph as JSON, tensors as bytes, and examples of its inputs.
_MEMBERS = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/[^/]+|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt)"
)


def _check_members(file: Path) -> None:
    """Refuse an archive that could run code when torch reads it: pickles of more than tensors, compiled libraries."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        others = [name for name in names if not _MEMBERS.fullmatch(name)]
        if others or len(set(names)) < len(names):
            raise ValueError(f"it holds {others[0] if others else 'a name twice'}, and no such file is read here")
        for name in names:
            if name.endswith("_config.json"):
                members = json.loads(archive.read(name))["config"]
                if any(member["use_pickle"] for member in members.values()):
                    raise ValueError("it holds pickles, which could run code when read; save plain tensors")
            elif name.endswith("sample_inputs/model.pt"):
                # torch would read it as any pickle where this fails.
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)


class _Last(nn.Linear):
    """The identity in place of a last layer: its input are the features."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits


class _Exported(nn.Module):
    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.last = _Last(1, 1)  # its weight says on which device images are wanted
        self._programs: Any = [program]  # in a list, it is no module of this one: it has no train and eval modes

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self._programs[0](images))
        return logits


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
