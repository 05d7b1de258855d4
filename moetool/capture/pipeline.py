"""The pipeline of weights: while one layer computes, the next is read and converted in the background."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from moetool.capture.choices import free_memory
from moetool.capture.pieces import PieceLoader
from moetool.progress import Progress

SPARE_SHARE = 0.1
"""Of the memory that is free, what a piece that is loaded ahead leaves to the one that computes."""


@contextmanager
def in_turn(loader: PieceLoader, paths: Sequence[str], progress: Progress) -> Iterator[Iterator[str]]:
    """Module paths one after another: each is loaded when it is yielded, and released when the next is asked for.

    Where the memory does not suffice for two of them, a piece is loaded only after the one before it is released.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, thread_name_prefix="weights") as pool:
        if loader.only_copies:
            pool.submit(_copy_with_one_thread).result()
            torch.set_num_threads(threads)

        def pieces() -> Iterator[str]:
            ahead: Future[None] | None = None
            told = False
            for path, following in zip(paths, [*paths[1:], None], strict=True):
                (ahead or pool.submit(loader.load, path)).result()
                loader.buffers.arrived()
                fits = following is not None and _fits(loader.size_of(following), loader.device)
                ahead = pool.submit(loader.load, following) if following is not None and fits else None
                if following is not None and not fits and not told:
                    progress.note("memory suffices for one layer only: weights are not read ahead")
                    told = True
                yield path
                loader.release(path)

        try:
            yield pieces()
        finally:
            loader.stop()


def _copy_with_one_thread() -> None:
    """A team of OpenMP's threads for copies would take turns with that of the layer that computes, and wait for it.

    torch counts threads for each thread, once it has looked, and for those to come: the caller sets that back.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)


def _fits(size_bytes: int, device: torch.device) -> bool:
    return size_bytes <= free_memory(device) * (1 - SPARE_SHARE)
