"""Methods that find the scales of activations."""
