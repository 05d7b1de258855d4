"""The pipeline of weights: while one layer computes, the next is read and converted in the background."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from moetool.capture.pieces import PieceLoader


@contextmanager
def in_turn(loader: PieceLoader, paths: Sequence[str]) -> Iterator[Iterator[str]]:
    """Module paths one after another: each is loaded when it is yielded, and released when the next is asked for."""
    with ThreadPoolExecutor(1, thread_name_prefix="weights") as pool:

        def pieces() -> Iterator[str]:
            ahead = pool.submit(loader.load, paths[0])
            for path, following in zip(paths, [*paths[1:], None], strict=True):
                ahead.result()
                loader.buffers.arrived()
                if following is not None:
                    ahead = pool.submit(loader.load, following)
                yield path
                loader.release(path)

        try:
            yield pieces()
        finally:
            loader.stop()
