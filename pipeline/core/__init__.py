"""The framework shared by all stages, which does not affect results."""
