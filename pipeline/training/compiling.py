"""Temporary `torch.compile` of a module's forward that leaves its state dict keys unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def compiled(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Compile the forward of ``module`` within the context; of a container without forward, that of each child."""
    parts = list(_parts(module)) if enabled else []
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
