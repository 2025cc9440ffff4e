"""Ablations: what one choice of a recipe or of a quantization changes, all else equal."""
