import numpy as np
import pytest
import torch

from latebloom.data.seeds import child_seed, numpy_rng, torch_rng


def test_seeds_stay_what_they_were_in_every_version() -> None:
    # A changed number here makes other images of every plan ever written.
    assert child_seed(0) == 7520536977032167579
    assert child_seed(7, "item", 3) == 6625698387500650576


def test_streams_with_other_names_are_other_streams() -> None:
    for other in [("a", "1"), ("a1",), (1, "a"), ("a",), ("a", 1, ""), ("A", 1)]:
        assert child_seed(0, "a", 1) != child_seed(0, *other)


def test_another_root_is_another_stream() -> None:
    assert child_seed(0, "a") != child_seed(1, "a")
    assert child_seed(0, 1) != child_seed(1, 0)


def test_seeds_fit_a_signed_64_bit_integer() -> None:
    seeds = [child_seed(0, name) for name in range(1000)]
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    assert max(seeds) > 2**62  # and use its bits
    assert len(set(seeds)) == 1000


def test_a_numpy_integer_as_root_is_that_integer() -> None:
    assert child_seed(int(np.int64(5)), "a") == child_seed(np.int64(5), "a")  # type: ignore[arg-type]


def test_a_name_that_is_neither_text_nor_integer_is_refused() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        child_seed(0, object())  # type: ignore[arg-type]


def test_generators_draw_the_same_again_whoever_drew_before() -> None:
    numpy_first, torch_first = numpy_rng(0, "x").random(4), torch.rand(4, generator=torch_rng(0, "x"))
    numpy_rng(0, "y").random(100)
    np.testing.assert_array_equal(numpy_rng(0, "x").random(4), numpy_first)
    assert torch.equal(torch.rand(4, generator=torch_rng(0, "x")), torch_first)


def test_generators_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(4, generator=torch_rng(0, "x"))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch_rng(0, "x").device.type == "cpu"
