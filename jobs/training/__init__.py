"""Fine-tuning and evaluation as stages."""
