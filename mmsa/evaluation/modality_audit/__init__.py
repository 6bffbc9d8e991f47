"""Does the picture help? The same samples with a modality masked or exchanged, and its cost."""
