"""Ways to find the scales of activations."""
