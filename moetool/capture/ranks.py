"""Several processes that capture together, as torchrun starts them: its environment enters, a meeting place leaves.

The ranks exchange no tensors, only the news that they are done. So there is no process group and no backend that would
need GPUs or open ports between all machines: they meet in the store through which torchrun's processes find each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.errors import MoetoolError
from moetool.progress import Progress

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

START_SECONDS = 600.0
"""All processes have to have started after this time."""
SIGHT_SECONDS = 90.0
"""A network file system may hide a new file from other machines for a minute (acdirmax of NFS)."""
POLL_SECONDS = 0.1
_FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Rank:
    """Number ``index`` (from 0) of ``count`` processes."""

    index: int
    count: int
    local: int
    """Its number on its machine."""
    neighbours: int = 1
    """Ranks on that machine, itself included."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that reports and joins."""
        return self.index == 0


def find_rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """The rank that torchrun gave this process; None where it is alone."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    values = [environment.get(name, "") for name in names]
    if not all(values) or not all(value.isdecimal() for value in values[:3]):
        return None
    index, count, local = (int(value) for value in values[:3])
    neighbours = environment.get("LOCAL_WORLD_SIZE", "1")
    return Rank(index, count, local, int(neighbours)) if count > 1 and index < count else None


class RankGroup:
    """The ranks of one capture; every rank meets the others at the same points, by name."""

    def __init__(self, rank: Rank, store: Store) -> None:
        self.rank, self.store = rank, store

    def meet(self, point: str, progress: Progress) -> None:
        """Return when all ranks have come to this point; MoetoolError where one has failed.

        Python sleeps between the questions, so that signals arrive: torchrun ends all ranks when one fails.
        """
        self.store.add(point, 1)
        with progress.step("waiting for the other processes"):
            while self.store.add(point, 0) < self.rank.count:
                if self.store.check([_FAILED]):
                    raise MoetoolError("another rank failed", "its own message says why")
                time.sleep(POLL_SECONDS)

    def tell_failure(self) -> None:
        """Let the others know that this rank will not come."""
        with suppress(RuntimeError):  # the host of the store may be gone
            self.store.set(_FAILED, str(self.rank.index))

    def leave(self) -> None:
        """Go; the first rank, which may be the host of the store, goes last."""
        self.store.add("left", 1)
        while self.rank.first and self.store.add("left", 0) < self.rank.count:
            time.sleep(POLL_SECONDS)

    def wait_for_files(self, files: Sequence[Path]) -> None:
        """Return when this rank sees what others wrote; MoetoolError where their folder is another."""
        end = time.monotonic() + SIGHT_SECONDS
        for file in files:
            while not file.is_file():
                if time.monotonic() > end:
                    raise MoetoolError(
                        f"{file}, which another rank wrote, is not there: machines must share a file system",
                        f"without torchrun, capture a part on each (--shard 1/{self.rank.count}, and so on), copy the "
                        "folders to one place and give all of them to moetool route-stats",
                    )
                time.sleep(POLL_SECONDS)

    def pick_device(self, wanted: str) -> str:
        """A GPU for each rank of a machine where CUDA is meant; MoetoolError where there are too few."""
        import torch

        if wanted not in ("auto", "cuda") or not torch.cuda.is_available():
            return wanted
        if self.rank.local >= torch.cuda.device_count():
            raise MoetoolError(
                f"there is no GPU for local rank {self.rank.local}: this machine has {torch.cuda.device_count()}",
                f"torchrun --nproc-per-node {torch.cuda.device_count()}, or --device cpu",
            )
        torch.cuda.set_device(self.rank.local)  # kernels that do not ask where their tensors are run here
        return f"cuda:{self.rank.local}"


@contextmanager
def meeting(rank: Rank) -> Iterator[RankGroup]:
    """The group of this process's rank; errors inside are told to the other ranks and name the rank.

    Raises MoetoolError where the others do not start in time or go away.
    """
    from torch.distributed import DistError
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    group: RankGroup | None = None
    try:
        store, _, _ = next(rendezvous("env://", rank.index, rank.count, timeout=timedelta(seconds=START_SECONDS)))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun --max-restarts begins anew
        group = RankGroup(rank, PrefixStore(f"moetool/{attempt}", store))
        yield group
        group.leave()
    except BaseException as error:
        if group is not None:
            group.tell_failure()
        if isinstance(error, MoetoolError):
            raise MoetoolError(f"rank {rank.index}: {error.message}", error.hint) from error
        if isinstance(error, DistError):
            raise MoetoolError(f"rank {rank.index}: the other ranks are out of reach: {error}") from error
        raise
