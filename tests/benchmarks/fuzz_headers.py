"""Damaged checkpoints through the header reader, judged by the safetensors library: cases per second and outcomes.

``python -m tests.benchmarks.fuzz_headers [--cases 100000] [--seed 0]``. Every case must end in tensors or in a
MoetoolError within ``--seconds``, without allocating more than ``--megabytes``; accepted tensors must add up to the
file and be those that safetensors finds. Every fifth case is a folder with a damaged shard, index or config, of which
facts are made. Exits with 1 where a case broke one of these rules. Linux only (it limits address spaces).
"""

from __future__ import annotations

import argparse
import faulthandler
import re
import resource
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from moetool.checkpoint.headers import read_header
from moetool.checkpoint.locate import locate
from moetool.errors import MoetoolError
from moetool.model.facts import model_facts
from tests.mutations import CONFIG, DAMAGES, INDEX, SOURCES, Folder, check_accepted, refused_by_safetensors

CHUNK = 1000
SAMPLE = 50
"""Every how many cases Python's peak is measured; the limit of the address space holds for all."""


@dataclass
class Outcomes:
    """What happened, added up over cases."""

    ours: Counter[str] = field(default_factory=Counter)
    """By kind of damage: accepted or refused; and messages, names and numbers cut out."""
    theirs: Counter[str] = field(default_factory=Counter)
    """Agreement with safetensors, and why one side refused what the other accepted."""
    broken: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    peak: tuple[int, str] = (0, "")

    def add(self, other: Outcomes) -> None:
        self.ours.update(other.ours)
        self.theirs.update(other.theirs)
        self.broken += other.broken
        self.slowest, self.peak = max(self.slowest, other.slowest), max(self.peak, other.peak)


def read_file(path: Path, content: bytes, theirs: Counter[str]) -> None:
    """Read one file and compare with safetensors; raises what the reader raises."""
    try:
        tensors = read_header(path)
    except MoetoolError as error:
        reason = refused_by_safetensors(content)
        theirs["both refuse" if reason else f"only moetool refuses: {plain(error)}"] += 1
        raise
    check_accepted(content, tensors)
    reason = refused_by_safetensors(content, tensors)
    theirs["both accept" if reason is None else f"only safetensors refuses: {reason}"] += 1


def read_model(folder: Folder) -> None:
    """Read a folder and sort its tensors; raises what that raises."""
    checkpoint = locate(str(folder.path))
    facts = model_facts(checkpoint)
    assert facts.total_bytes == sum(tensor.size_bytes for tensor in checkpoint.tensors) == folder.data_bytes()


def plain(error: MoetoolError) -> str:
    """The message without what differs from case to case."""
    message = re.sub(r"^/\S+?(: |(?= ))|\S*/tmp\S*", "", error.message)
    return re.sub(r"'.*'|\".*\"|\[.*\]|-?\d[\d,.]*|: line.*", "#", message)[:90]


def run_case(read: Callable[[], None], kind: str, case: str, limit: float, sampled: bool, outcomes: Outcomes) -> None:
    """Carry out one case; a case that is stuck inside C code ends the whole run with its traceback."""
    faulthandler.dump_traceback_later(10 * limit, exit=True)
    if sampled:
        tracemalloc.start()
    started, outcome = time.perf_counter(), "accepted"
    try:
        read()
    except MoetoolError as error:
        error.message.encode()
        outcome = "refused"
        outcomes.ours[f"message: {plain(error)}"] += 1
    except BaseException as error:  # Rust panics are no Exceptions
        outcome = "BROKEN"
        last = traceback.extract_tb(error.__traceback__)[-1]
        outcomes.broken.append(f"{type(error).__name__} in {last.name}: {str(error)[:80]!a} ({case})")
    seconds = time.perf_counter() - started
    faulthandler.cancel_dump_traceback_later()
    if sampled:
        outcomes.peak = max(outcomes.peak, (tracemalloc.get_traced_memory()[1], case))
        tracemalloc.stop()
    else:
        outcomes.slowest = max(outcomes.slowest, (seconds, case))
    if seconds > limit:
        outcomes.broken.append(f"takes {seconds:.1f} s ({case})")
    outcomes.ours[f"{kind}: {outcome}"] += 1


def run_chunk(chunk: int, seed: int, seconds: float, megabytes: int) -> Outcomes:
    """A thousand cases, which depend on nothing but ``seed`` and ``chunk``."""
    random, outcomes = Random(f"{seed} {chunk}"), Outcomes()
    with tempfile.TemporaryDirectory() as name:
        path, folder = Path(name) / "case.safetensors", Folder(Path(name) / "model")
        read_model(folder)  # what imports take is no case's
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 2**20, limits[1]))
        for number in range(CHUNK):
            if number % 5:
                damage = random.choice(DAMAGES)
                kind, content = f"file {damage.__name__}", damage(random, random.choice(SOURCES))
                path.write_bytes(content)
                read = partial(read_file, path, content, outcomes.theirs)
            else:
                file = random.choice(list(folder.valid))
                where = file if file in (CONFIG, INDEX) else "shard"
                kind = f"{where} {folder.damage(random, file)}"
                read = partial(read_model, folder)
            case = f"seed {seed}, chunk {chunk}, case {number}: {kind}"
            run_case(read, kind, case, seconds, number % SAMPLE < 2, outcomes)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    return outcomes


def main() -> None:
    """Damage, read, judge, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=2.0, help="limit of one case")
    parser.add_argument(
        "--megabytes", type=int, default=64, help="limit of the address space above that of the imports"
    )
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    chunks, total, started = range(-(-options.cases // CHUNK)), Outcomes(), time.perf_counter()
    run = partial(run_chunk, seed=options.seed, seconds=options.seconds, megabytes=options.megabytes)
    with ProcessPoolExecutor(options.processes) as pool:
        for outcomes in pool.map(run, chunks):
            total.add(outcomes)
    seconds, cases = time.perf_counter() - started, len(chunks) * CHUNK
    for counter in (total.ours, total.theirs):
        print(*(f"{count:8,}  {key}" for key, count in sorted(counter.items())), sep="\n")
    print(f"{cases:,} cases in {seconds:.0f} s: {cases / seconds:,.0f}/s in {options.processes} processes")
    print(f"slowest {total.slowest[0] * 1000:.1f} ms ({total.slowest[1]})")
    print(f"peak of Python's allocations {total.peak[0] / 1e6:.2f} MB ({total.peak[1]})")
    print(f"resident at most {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MiB with all imports")
    kinds = Counter(re.sub(r" \(seed.*", "", case) for case in total.broken)
    print(f"{len(total.broken)} broken", *(f"{count:8,}  {kind}" for kind, count in kinds.most_common(30)), sep="\n")
    print(*total.broken[:20], sep="\n")
    sys.exit(bool(total.broken))


if __name__ == "__main__":
    main()
