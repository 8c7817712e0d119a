"""A plain PyTorch loop that retrains on a generated set beside the real one, with SGD or SAM.

Nothing in the loop is Latebloom's but the two lines that are marked.
"""

import sys

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset

import latebloom

splits = latebloom.load(latebloom.DataConfig(source="digits"))  # 200 training images, 797 test images
criterion = nn.CrossEntropyLoss()
torch.set_num_threads(1)  # enough for pictures of 8 x 8


def as_tensors(data: latebloom.LabeledImages) -> TensorDataset:
    """Your own data set of float images 0..1 and labels."""
    pixels = torch.from_numpy(data.pixels()).permute(0, 3, 1, 2)  # (N, 1, 8, 8)
    return TensorDataset(pixels.float() / 255, torch.from_numpy(data.labels))


def to_tensor(picture: object) -> Tensor:
    return torch.from_numpy(np.array(picture))[None].float() / 255  # (1, 8, 8)


def new_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(32, 10)),
    )


def train(data: Dataset[tuple[Tensor, Tensor]], epochs: int, seed: int, use_sam: bool = False) -> nn.Module:
    model = new_model(seed)
    loader = DataLoader(data, batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    sam = latebloom.SAM(optimizer, model, rho=0.05)  # the first line
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            if use_sam:
                sam.step(lambda images=images, labels=labels: criterion(model(images), labels))  # the second
            else:
                optimizer.step()
            schedule.step()
    return model.eval()


@torch.inference_mode()
def logits_of(model: nn.Module, data: TensorDataset) -> Tensor:
    return torch.cat([model(images) for images, _ in DataLoader(data, batch_size=256)])


real, test = as_tensors(splits.train), as_tensors(splits.test)
early = train(real, epochs=3, seed=0)
slow = latebloom.select_slow(logits_of(early, real).numpy(), splits.train.labels)
out = sys.argv[1] if len(sys.argv) > 1 else "synthetic"
latebloom.synthesize(
    splits.train,
    slow.indices,
    "digits",
    out,
    levels=(40, 50, 70, 80),
    classifier=early,
    sample=latebloom.SampleConfig(steps=20, guidance_scale=1.0),
)
synthetic = latebloom.SyntheticImages(out, to_tensor, torch.tensor)  # a TensorDataset has labels as tensors
both: ConcatDataset[tuple[Tensor, Tensor]] = ConcatDataset([real, synthetic])
print(f"{len(slow.indices)} of {len(real)} images are learned late; {len(synthetic)} variants of them are usable")

seeds, epochs = range(3), 30
for name, data, use_sam in (("real", real, False), ("real and synthetic", both, False), ("with SAM", both, True)):
    errors = []
    for seed in seeds:
        wrong = logits_of(train(data, epochs, seed, use_sam), test).argmax(1) != test.tensors[1]
        errors.append(100 * wrong.float().mean().item())
    print(f"{name}: test error {np.mean(errors):.1f} ± {np.std(errors, ddof=1):.1f} % over {len(seeds)} seeds")
