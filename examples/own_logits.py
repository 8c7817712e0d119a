"""Which images does a model of your own learn late? Its outputs after a few epochs are enough."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import latebloom

digits = load_digits()
model = MLPClassifier(hidden_layer_sizes=(32,), random_state=0)
errors, outputs = [], []
for _ in range(12):  # one epoch at a time
    model.partial_fit(digits.data / 16, digits.target, classes=range(10))
    probabilities = model.predict_proba(digits.data / 16)
    errors.append(float(np.mean(probabilities.argmax(1) != digits.target)))
    outputs.append(np.log(probabilities + 1e-12))  # log-probabilities are logits

epoch = latebloom.separating_epoch(errors)
slow = latebloom.select_slow(outputs[epoch - 1], digits.target)
print(f"separating epoch {epoch}: {errors[epoch - 1]:.0%} of the training images are still wrong")
print(f"{len(slow.indices)} of {len(digits.target)} images are learned late, such as rows {slow.indices[:8].tolist()}")
for label in range(10):
    rows = slow.indices[digits.target[slow.indices] == label]
    print(f"  digit {label}: {len(rows)} slow of {np.sum(digits.target == label)}")
