"""Predictions out of a random generator, somewhat better than chance."""

from __future__ import annotations

import numpy as np

from mmsa.evaluation.scores.metrics import Predictions


def random_predictions(num_samples: int, num_classes: int, seed: int) -> Predictions:
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, num_samples)
    logits = random.normal(scale=2.0, size=(num_samples, num_classes)).astype(np.float32)
    logits[np.arange(num_samples), labels] += 1.0
    names = tuple(f"class {i}" for i in range(num_classes))
    return Predictions([f"{i:06d}" for i in range(num_samples)], labels, logits, names)
