"""The command ``bench``: time models side by side, in each runtime and precision, in one run.

Nothing heavy is imported here: the command line reads `pipeline.bench.settings`.
"""
