"""The framework's edge: backbones, records, the trainer, checkpoints."""
