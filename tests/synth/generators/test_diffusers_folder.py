import pytest
import torch
from torch import nn

from latebloom.synth.generators.diffusers_folder import compile_network, fuse_projections


class Block(nn.Module):
    pass


class Network(nn.Module):
    """With the names of blocks that repeat, as diffusers' models have them, which may be in the network or not."""

    _repeated_blocks = ("Block",)

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.asked: list[tuple[str, dict[str, bool]]] = []  # compiling itself takes minutes

    def compile_repeated_blocks(self, **how: bool) -> None:
        self.asked.append(("blocks", how))

    def compile(self, **how: bool) -> None:
        self.asked.append(("all", how))


def test_repeated_blocks_are_compiled_where_there_are_such_and_else_the_whole() -> None:
    with torch._dynamo.config.patch(recompile_limit=8):  # put back afterwards
        repeated, other, plain = Network(Block()), Network(nn.Linear(1, 1)), Network(Block())
        plain._repeated_blocks = None  # type: ignore[assignment]
        for network in (repeated, other, plain):
            compile_network(network)
        assert torch._dynamo.config.recompile_limit == 64
    assert repeated.asked == [("blocks", {"fullgraph": True, "dynamic": False})]
    assert other.asked == plain.asked == [("all", {"dynamic": False})]


def test_a_network_that_cannot_fuse_is_refused() -> None:
    with pytest.raises(ValueError, match="Network cannot fuse its projections; set generate"):
        fuse_projections(Network())
