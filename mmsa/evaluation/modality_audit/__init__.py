"""Does the image help? The same samples with a modality masked or shuffled, and the cost."""
