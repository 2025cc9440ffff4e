"""Readers of images, masks and embeddings; each gives plain values and says clearly what is wrong with a file."""
