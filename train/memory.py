"""How much memory a training step takes, from what a forward pass of two images keeps for its backward pass."""

import copy
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latebloom.data.seeds import torch_stream
from latebloom.train.config import FitConfig

__all__ = ["StepMemory", "step_memory"]

_FEW = 2  # images; BatchNorm needs more than one


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes that training one model takes beside its data.

    Attributes:
        fixed: weights, gradients, what the optimizer keeps, and for SAM its ascent.
        per_image: activations of each image of a micro-batch, and the gradients of the largest two of them.
    """

    fixed: int
    per_image: int

    def of(self, images: int) -> int:
        """For micro-batches of so many images."""
        return self.fixed + images * self.per_image

    def fitting(self, available: float) -> int:
        """The most images of a micro-batch that this many bytes hold; 0: not one."""
        return max(0, int((available - self.fixed) // self.per_image))


def step_memory(model: nn.Module, image_shape: tuple[int, int, int], config: FitConfig) -> StepMemory:
    """Measure what a step of this model on such images takes; the model, on the CPU, is left as it is.

    Kernels' own workspace, fragmentation and a CUDA context come on top.

    Args:
        image_shape: (H, W, C).
    """
    weights = sum(w.numel() * w.element_size() for w in [*model.parameters(), *model.buffers()])
    trained = sum(w.numel() * w.element_size() for w in model.parameters())
    # The gradient and the momentum; SAM's ascent; AdaHessian's second moment and estimate.
    copies = 2 + {"sgd": 0, "sam": 1, "adahessian": 2}[config.optimizer]
    kept = _kept(copy.deepcopy(model).train(), image_shape, config)
    return StepMemory(weights + copies * trained, max(1, (sum(kept) + 2 * max(kept, default=0)) // _FEW))


def _kept(model: nn.Module, image_shape: tuple[int, int, int], config: FitConfig) -> list[int]:
    """The bytes of each tensor, but for the weights, that is kept for the backward pass of two images."""
    height, width, channels = image_shape
    own = {w.untyped_storage().data_ptr() for w in [*model.parameters(), *model.buffers()]}
    shapes = {tuple(sorted(w.shape)) for w in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}  # alive, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        cast = tensor.dtype == torch.bfloat16 and tuple(sorted(tensor.shape)) in shapes  # a weight at lower precision
        if storage.data_ptr() not in own and not cast:
            found[storage.data_ptr()] = storage
        return tensor

    half = torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16")
    with torch_stream(0, "memory"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with half:
            logits: Tensor = model(torch.zeros(_FEW, channels, height, width))
        loss = F.cross_entropy(logits.float(), torch.zeros(_FEW, dtype=torch.int64))
        if config.optimizer == "adahessian":  # the gradients have a graph of their own
            torch.autograd.grad(loss, list(model.parameters()), create_graph=True, allow_unused=True)
    return [storage.nbytes() for storage in found.values()]
