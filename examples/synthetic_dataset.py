"""From a torch Dataset and the outputs of your own model to a synthetic data set on disk, without a run folder."""

import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from torch.utils.data import Dataset

import latebloom


class Digits(Dataset[tuple[Image.Image, int]]):
    """Stands for your own data set: item i is a picture and its label."""

    classes = tuple("0123456789")

    def __init__(self) -> None:
        self.bunch = load_digits()

    def __len__(self) -> int:
        return 200

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.uint8(self.bunch.images[row] * 15.9375)), int(self.bunch.target[row])


dataset = Digits()
flat, labels = dataset.bunch.data[: len(dataset)] / 16, dataset.bunch.target[: len(dataset)]
model = SGDClassifier(loss="log_loss", random_state=0)  # stands for your own model
for _ in range(3):  # epochs
    model.partial_fit(flat, labels, classes=range(10))

images = latebloom.images_from(dataset)
slow = latebloom.select_slow(model.decision_function(flat), images.labels)
made = latebloom.synthesize(
    images,
    slow.indices,
    generator="digits",  # for your own images: the path of a diffusers folder
    out=sys.argv[1] if len(sys.argv) > 1 else "synthetic",
    levels=(40, 60),
    sample=latebloom.SampleConfig(steps=20, guidance_scale=1.0),
)

print(f"{len(slow.indices)} of {len(images)} images are learned late, such as {images.names[slow.indices[0]]}")
print(f"{made.path} has {made.manifest()['rows']} variants of them: {made.manifest()['states']}")
