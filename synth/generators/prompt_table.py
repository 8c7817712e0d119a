"""Embeddings of prompts, made once: a condition of a `Denoiser` is a row of this table."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["PromptTable", "check_class_names", "warn_of_cut"]


class PromptTable:
    """What a network is given for each prompt, by the names of its arguments. Condition -1 is "none".

    It is on the CPU: SDXL has 315 KB a prompt in half precision, 3 GB for 10,000 prompts.
    """

    def __init__(self) -> None:
        self._conditions: dict[str, int] = {}
        self._tensors: dict[str, Tensor] = {}  # (1 + P, ...); row 0 is "none"

    def __len__(self) -> int:
        return len(self._conditions)

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """The distinct prompts that have no row yet."""
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._conditions]

    def add(self, prompts: Sequence[str], rows: Sequence[Mapping[str, Tensor]]) -> None:
        """Add a row, tensors (1, ...), for each prompt; before the first prompts there is one for "none", too."""
        assert len(rows) == len(prompts) + (not self._conditions), (len(rows), len(prompts))
        for name in rows[0]:
            before = [self._tensors[name]] if self._conditions else []
            self._tensors[name] = torch.cat([*before, *(row[name].cpu() for row in rows)])
        self._conditions |= {prompt: row for row, prompt in enumerate(prompts, len(self._conditions))}

    def conditions(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """int64 (n,) on `device`: the row of each prompt.

        Raises:
            ValueError: a prompt that was not prepared.
        """
        for prompt in self.missing(prompts):
            raise ValueError(f"prompt {prompt!r} was not prepared; give `prepare` every prompt before it is used")
        return torch.tensor([self._conditions[prompt] for prompt in prompts], dtype=torch.int64, device=device)

    def take(self, conditions: Tensor) -> dict[str, Tensor]:
        """The arguments of the network for conditions int64 (n,), tensors (n, ...) on their device."""
        rows, places = (conditions + 1).unique(return_inverse=True)  # with guidance, half of a batch are "none"
        rows = rows.cpu()
        return {name: tensor[rows].to(conditions.device)[places] for name, tensor in self._tensors.items()}


def check_class_names(class_names: Sequence[str]) -> None:
    """Raise ValueError where a class has no name for its prompt."""
    for label, name in enumerate(class_names):
        if not name.strip():
            raise ValueError(f"class {label} has no name, which its prompt needs; name it in the class-name map")


def warn_of_cut(prompt: str, text: str, tokenizer: Any, limit: int) -> None:
    """Warn where `text`, a prompt as the tokenizer gets it, has more than `limit` tokens, with what is cut off."""
    tokens = tokenizer(text, verbose=False).input_ids
    if len(tokens) > limit:
        end = int(tokens[-1] == tokenizer.eos_token_id)  # takes a place itself; Gemma has none
        cut = tokenizer.decode(tokens[limit - end : len(tokens) - end])
        warnings.warn(f"prompt {prompt!r} has more than {limit} tokens: {cut!r} is cut off", stacklevel=2)
