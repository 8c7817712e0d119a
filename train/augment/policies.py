"""Strong augmentation of uint8 image batches on their device: published policies, drawn for each image on its own."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from latebloom.train.augment.image_ops import CODES, apply_operations, check_images, mixed
from latebloom.train.augment.weak import Draw
from latebloom.train.config import PolicyConfig, PolicyName

__all__ = ["Draw", "Policy", "PolicyConfig", "PolicyName", "choose", "make_policy", "mixed"]


class Policy(Protocol):
    """A strong augmentation for images of one shape."""

    @property
    def candidates(self) -> int:
        """Compositions that a draw has for each image; with more than 1, `candidate` must choose before `apply`."""

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        """The choices for n images, on the CPU, from a CPU generator."""

    def candidate(self, draw: Draw, choice: Tensor) -> Draw:
        """The draw in which image i has its composition choice[i] (int64 (n,))."""

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """The B images as drawn: uint8 (B, C, H, W) in new memory, on the same device. "mix" is left to `mixed`."""


def make_policy(config: PolicyConfig, channels: int, height: int, width: int) -> Policy:
    """The policy for images of one shape.

    Raises:
        ValueError: images with other than 1 or 3 channels, or too small for the policy.
    """
    if channels not in (1, 3):
        raise ValueError(f"images have {channels} channels, strong augmentation needs 1 or 3; convert the images first")
    least = config.perturb_kernel // 2 + 1 if config.policy == "perturb" else 1
    if min(height, width) < least:
        raise ValueError(
            f"images are {width}x{height}, {config.policy} needs {least} px a side; set image_size to that or more"
        )
    shape = (channels, height, width)
    if config.policy.startswith("autoaugment"):
        return _AutoAugment(config, shape)
    kinds: dict[str, type[_Sequence]] = {
        "randaugment": _RandAugment,
        "trivialaugment": _TrivialAugment,
        "augmix": _AugMix,
        "cutout": _Cutout,
        "perturb": _Perturb,
        "wu2020": _Wu,
    }
    return kinds[config.policy](config, shape)


def choose(losses: Tensor, how: Literal["top", "proportional"], generator: torch.Generator) -> Tensor:
    """Which of its candidates each image gets (arXiv 2005.00695; "proportional" is what its published code does).

    Args:
        losses: float (n, K) >= 0, of the candidates.
        how: top: the highest loss, the first of equal ones. proportional: at random, with each image's losses over
            their sum as probabilities; uniform where all are 0.

    Returns:
        int64 (n,) in 0..K - 1, on the CPU.

    Raises:
        ValueError: losses that are not finite.
    """
    losses = losses.cpu()
    assert losses.ndim == 2
    assert losses.shape[1] >= 1
    bad = int((~losses.isfinite()).any(1).sum())
    if bad:
        raise ValueError(
            f"losses of the candidates of {bad} images are not finite: training has diverged; lower the learning rate"
        )
    assert (losses >= 0).all()
    if how == "top":
        return losses.argmax(1)
    shares = losses.double().cumsum(1)  # (n, K)
    total = shares[:, -1:]
    even = torch.arange(1, losses.shape[1] + 1).double().expand_as(shares)
    shares = torch.where(total > 0, shares / total, even / losses.shape[1])
    point = torch.rand(len(losses), 1, generator=generator, dtype=torch.float64)
    # The first candidate whose share ends beyond the point: one of loss 0 never is.
    return (shares <= point).sum(1).clamp_(max=losses.shape[1] - 1)


class _Space:
    """Operations with their magnitudes, read from one of torchvision's policies.

    Attributes:
        codes: int64 (O,).
        magnitudes: float32 (O, bins), 0 where an operation has none.
        signed: bool (O,), whether the magnitude's sign is drawn.
    """

    def __init__(self, name: str, bins: int, height: int, width: int) -> None:
        from torchvision.transforms import v2

        space = getattr(v2, name)._AUGMENTATION_SPACE
        self.names = list(space)
        self.codes = torch.tensor([CODES[operation] for operation in space])
        tables = [values(bins, height, width) for values, _ in space.values()]
        self.magnitudes = torch.stack([torch.zeros(bins) if t is None else t.float() for t in tables])
        self.signed = torch.tensor([signed for _, signed in space.values()])

    def draw(self, which: Tensor, bins: Tensor, generator: torch.Generator) -> Draw:
        """Codes and magnitudes of the operations `which` at the places `bins`, of one shape, with drawn signs."""
        magnitude = self.magnitudes[which, bins]
        negative = (torch.rand(which.shape, generator=generator) <= 0.5) & self.signed[which]
        return {"code": self.codes[which], "magnitude": torch.where(negative, -magnitude, magnitude)}


class _Sequence:
    """Operations one after the other: "code" int64 (n, S) and "magnitude" float32 (n, S); "center" for Cutout."""

    bilinear = False

    def __init__(self, config: PolicyConfig, shape: tuple[int, int, int]) -> None:
        self.config, self.shape = config, shape

    @property
    def candidates(self) -> int:
        return 1

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        raise NotImplementedError

    def candidate(self, draw: Draw, choice: Tensor) -> Draw:
        assert not choice.any(), "this policy has one candidate"
        return draw

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        self._check(images, draw)
        return self._steps(images, draw)

    def _check(self, images: Tensor, draw: Draw) -> None:
        check_images(images)
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"images are {tuple(images.shape[1:])}, the policy was made for {self.shape}; make another"
            )
        if len(draw["code"]) != len(images):
            raise ValueError(
                f"{len(images)} images, but a draw for {len(draw['code'])}; index the draw by the batch's rows"
            )

    def _steps(self, images: Tensor, draw: Draw) -> Tensor:
        code, magnitude = draw["code"].cpu(), draw["magnitude"].cpu()
        center = draw["center"].cpu() if "center" in draw else None
        assert code.ndim == 2, "choose a candidate first"
        for step in range(code.shape[1]):
            images = apply_operations(
                images,
                code[:, step],
                magnitude[:, step],
                None if center is None else center[:, step],
                bilinear=self.bilinear,
                kernel=self.config.perturb_kernel,
            )
        return images


class _AutoAugment(_Sequence):
    """AutoAugment (arXiv 1805.09501): one of 25 pairs of operations, each applied with its probability."""

    def __init__(self, config: PolicyConfig, shape: tuple[int, int, int]) -> None:
        super().__init__(config, shape)
        from torchvision.transforms import v2

        self.space = _Space("AutoAugment", 10, *shape[1:])
        kind = v2.AutoAugmentPolicy[config.policy.removeprefix("autoaugment_").upper()]
        pairs = v2.AutoAugment(kind)._policies
        names = self.space.names
        self.which = torch.tensor([[names.index(name) for name, _, _ in pair] for pair in pairs])  # (25, 2)
        self.chance = torch.tensor([[chance for _, chance, _ in pair] for pair in pairs])
        self.bins = torch.tensor([[place or 0 for _, _, place in pair] for pair in pairs])

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        pair = torch.randint(len(self.which), (n,), generator=generator)
        skipped = torch.rand(n, 2, generator=generator) >= self.chance[pair]
        draw = self.space.draw(self.which[pair], self.bins[pair], generator)
        draw["code"][skipped] = CODES["Identity"]
        return draw


class _RandAugment(_Sequence):
    """RandAugment (arXiv 1909.13719): operations drawn anew for each step, all at one magnitude of 31."""

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        space = _Space("RandAugment", 31, *self.shape[1:])
        which = torch.randint(len(space.codes), (n, self.config.randaugment_operations), generator=generator)
        return space.draw(which, torch.full_like(which, self.config.randaugment_magnitude), generator)


class _TrivialAugment(_Sequence):
    """TrivialAugment, wide (arXiv 2103.10158): one operation, at one of 31 magnitudes."""

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        space = _Space("TrivialAugmentWide", 31, *self.shape[1:])
        which = torch.randint(len(space.codes), (n, 1), generator=generator)
        return space.draw(which, torch.randint(31, (n, 1), generator=generator), generator)


class _AugMix(_Sequence):
    """AugMix (arXiv 1912.02781) as in torchvision: chains of 1 to 3 operations, bilinear, mixed with the image.

    A draw holds the steps of all chains, (n, 3 * width), and "share" float32 (n, 1 + width): first the image's share,
    then each chain's.
    """

    bilinear = True
    _DEPTH = 3

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        config, space = self.config, _Space("AugMix", 10, *self.shape[1:])
        width = config.augmix_width
        which = torch.randint(len(space.codes), (n, width, self._DEPTH), generator=generator)
        bins = torch.randint(config.augmix_severity, which.shape, generator=generator)
        draw = space.draw(which, bins, generator)
        depth = torch.randint(1, self._DEPTH + 1, (n, width, 1), generator=generator)
        draw["code"][torch.arange(self._DEPTH) >= depth] = CODES["Identity"]
        own = torch._sample_dirichlet(torch.full((n, 2), config.augmix_alpha), generator)
        chains = torch._sample_dirichlet(torch.full((n, width), config.augmix_alpha), generator)
        share = torch.cat((own[:, :1], chains * own[:, 1:]), 1)
        return {name: values.flatten(1) for name, values in draw.items()} | {"share": share}

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        self._check(images, draw)
        share = draw["share"].to(images.device, non_blocking=True)[..., None, None, None]  # (B, 1 + width, 1, 1, 1)
        width = share.shape[1] - 1
        # All chains at once: fewer and larger groups. Chain after chain of one image, (B * width, depth).
        steps = {name: draw[name].reshape(len(images) * width, self._DEPTH) for name in ("code", "magnitude")}
        chains = self._steps(images.repeat_interleave(width, 0), steps).view(-1, width, *self.shape)
        total = share[:, 0] * images
        for chain in range(width):
            total.add_(share[:, 1 + chain] * chains[:, chain])
        # Shares may sum to a little over 1.
        return total.clamp_(max=255).to(torch.uint8)


class _Cutout(_Sequence):
    """Cutout (arXiv 1708.04552): squares of 0 around random pixels."""

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        shape = (n, self.config.cutout_holes)
        return {
            "code": torch.full(shape, CODES["Cutout"]),
            "magnitude": torch.full(shape, float(self.config.cutout_length)),
            "center": torch.rand(*shape, 2, generator=generator),
        }


class _Perturb(_Sequence):
    """Brightness jitter and Gaussian blur, sigma in 0.1..2 (the controlled experiment of arXiv 2210.08363)."""

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        first, second = torch.rand(2, n, generator=generator)
        brightness = self.config.perturb_brightness * (2 * first - 1)
        sigma = 0.1 + 1.9 * second
        code = torch.tensor([CODES["Brightness"], CODES["GaussianBlur"]]).repeat(n, 1)
        return {"code": code, "magnitude": torch.stack((brightness, sigma), 1)}


class _Wu(_Sequence):
    """Random compositions, of which the losses choose ("On the Generalization Effects of Linear Transformations in Data
    Augmentation", arXiv 2005.00695).

    Each operation is drawn uniformly from 16 and applied with a probability that is drawn uniformly too, at a level
    uniform in AutoAugment's range (Cutout's: up to a fifth of the shorter side). Mixup, however often it is drawn,
    comes last and once, with the share of the image from Beta(1, 1). The published code ends every composition with
    crop, flip, Cutout and Mixup. Here crop and flip are the weak augmentation, and Cutout and Mixup come only if drawn.

    A draw of candidates has (n, K, S) where one of compositions has (n, S), and "mix" float32 and "partner" int64 in
    0..n - 1 (n, K) where that has (n,).
    """

    _POOL = (
        *("AutoContrast", "Brightness", "Color", "Contrast", "Cutout", "Equalize", "Invert", "Mixup"),
        *("Posterize", "Rotate", "Sharpness", "ShearX", "ShearY", "Solarize", "TranslateX", "TranslateY"),
    )

    @property
    def candidates(self) -> int:
        return self.config.wu2020_candidates

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        shape = (n, self.candidates, self.config.wu2020_operations)
        _, height, width = self.shape
        which = torch.randint(len(self._POOL), shape, generator=generator)
        chance, coin, level = torch.rand(3, *shape, generator=generator)
        ends = {  # magnitude at level 0 and at level 1
            **dict.fromkeys(("ShearX", "ShearY"), (-0.3, 0.3)),
            "TranslateX": (-150 / 331 * width, 150 / 331 * width),
            "TranslateY": (-150 / 331 * height, 150 / 331 * height),
            "Rotate": (-30.0, 30.0),
            **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (-0.9, 0.9)),
            "Posterize": (4.0, 8.0),
            "Solarize": (0.0, 1.0),
            "Cutout": (0.0, 0.2 * min(height, width)),
        }
        low, high = torch.tensor([ends.get(name, (0.0, 0.0)) for name in self._POOL]).unbind(1)
        magnitude = low[which] + (high - low)[which] * level
        whole = torch.tensor([name in ("Posterize", "Cutout") for name in self._POOL])
        magnitude = torch.where(whole[which], magnitude.round(), magnitude)
        mixes = (which == self._POOL.index("Mixup")) & (coin < chance)
        codes = torch.tensor([CODES.get(name, CODES["Identity"]) for name in self._POOL])
        share = torch.rand(shape[:2], generator=generator)
        return {
            "code": torch.where(coin < chance, codes[which], CODES["Identity"]),
            "magnitude": magnitude,
            "center": torch.rand(*shape, 2, generator=generator),
            "mix": torch.where(mixes.any(2), share, 1.0),
            "partner": torch.randint(max(n, 1), shape[:2], generator=generator),
        }

    def candidate(self, draw: Draw, choice: Tensor) -> Draw:
        rows = torch.arange(len(choice))
        return {name: values[rows, choice] for name, values in draw.items()}
