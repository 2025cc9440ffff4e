"""A module's forward through `torch.compile` for a while, without a change to the module's keys."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def compiled(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Compile the forward of ``module`` meanwhile, or of each module in it where it is a container that has none."""
    parts = list(_parts(module)) if wanted else []
    for part in parts:
        part.compile()
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    if type(module).forward is nn.Module.forward:
        for child in module.children():
            yield from _parts(child)
    else:
        yield module
