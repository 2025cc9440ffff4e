"""Draws in worker processes until it is ended; started by test_loading."""

import sys
from contextlib import closing

from pipeline.core.loading import Loading, Request, load
from pipeline.core.process import raise_on_signals
from tests.core.test_loading import Draw

if __name__ == "__main__":
    raise_on_signals()
    with closing(load(Draw(), (Request([n], n, [(n,)]) for n in range(10**9)), Loading(workers=2))) as batches:
        next(batches)
        sys.stdout.write("drawn\n")
        sys.stdout.flush()
        for _ in batches:
            pass
