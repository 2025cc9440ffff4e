"""Reading files that people hand in: one module per kind, each with its bounds (docs/reference/input-limits.md).

A reader here returns a checked value or raises `InputError` with one line that says what, where and the remedy. It
never hangs, executes code, or reads more than its bound. The rest of the code trusts the result.
"""
