"""What the capture benchmarks share: checkpoints to capture, a corpus, and how time and memory are taken.

Every measurement runs in a process of its own, which first does the same with a tiny checkpoint, so that neither
imports nor what libraries set up once are measured. Linux only: RssAnon, the anonymous memory of a process, is read
from /proc every 5 milliseconds.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DISTURBED = 0.15
"""CPUs of other processes; two threads that wait for each other lose far more than that share."""
DOCUMENT_TOKENS = 256
"""Of every document of the corpus; a batch of the CPU has eight."""


@dataclass(frozen=True)
class Shape:
    """A random model of bfloat16 weights."""

    family: str = "mixtral"
    layers: int = 16
    experts: int = 8
    per_token: int = 2
    hidden: int = 1024
    intermediate: int = 1216
    """Of one expert."""

    @classmethod
    def sized(cls, family: str, gigabytes: float, layers: int, experts: int, hidden: int = 1024) -> Shape:
        """Experts that make up almost all of the wanted size."""
        width = gigabytes * 1e9 / 2 / layers / experts / 3 / hidden
        per_token = 2 if family == "mixtral" else 4
        step = 32 if width >= 32 else 8
        return cls(family, layers, experts, per_token, hidden, max(step, int(width) // step * step))

    def config(self) -> dict[str, Any]:
        """Settings of transformers' config."""
        heads = max(1, self.hidden // 64)
        shared = {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 4),
            "max_position_embeddings": 4096,
            "num_experts_per_tok": self.per_token,
        }
        if self.family == "mixtral":
            return {**shared, "num_local_experts": self.experts, "intermediate_size": self.intermediate}
        return {
            **shared,
            "num_experts": self.experts,
            "moe_intermediate_size": self.intermediate,
            "shared_expert_intermediate_size": self.intermediate,
            "mlp_only_layers": [],
        }


TINY = {"layers": 2, "hidden": 64, "intermediate": 64}


def make_checkpoint(folder: Path, shape: Shape) -> None:
    """Save a random model and a tokenizer of one token per byte, and have the disk keep them."""
    import torch

    from tests.checkpoints import make_model, make_tokenizer

    model = make_model(shape.family, torch.bfloat16, **shape.config())
    model.save_pretrained(folder, max_shard_size="400MB")
    make_tokenizer().save_pretrained(folder)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # only what is written can be dropped from the page cache


def make_checkpoints(folder: Path, shape: Shape) -> None:
    """The checkpoint ``model`` and a tiny one of the same family."""
    tiny = Shape(**{**asdict(shape), **TINY, "experts": min(shape.experts, 8)})
    call("make_checkpoint", {folder / "tiny": tiny, folder / "model": shape})


def call(function: str, arguments: dict[Path, Shape]) -> None:
    """Call ``function(folder, shape)`` of this module for each of them, in another process."""
    code = [f"from pathlib import Path; import {__name__} as m"]
    code += [f"m.{function}(Path({str(folder)!r}), m.{shape!r})" for folder, shape in arguments.items()]
    subprocess.run([sys.executable, "-c", "\n".join(code)], check=True, stdout=subprocess.DEVNULL)


def write_corpus(path: Path, tokens: int) -> str:
    """Documents of random letters, of one length; returns the argument that names them."""
    chooser = random.Random(0)
    count = max(1, tokens // DOCUMENT_TOKENS)
    length = min(tokens, DOCUMENT_TOKENS) - 1  # and a token that begins the document
    texts = ("".join(chooser.choices("abcdefghijklmnopqrstuvwxyz    ", k=length)) for _ in range(count))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"x={path}"


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights."""
    return sorted(folder.glob("*.safetensors"))


def layer_bytes(folder: Path) -> int:
    """Stored bytes of the largest decoder layer."""
    sums: dict[str, int] = {}
    for path in weight_files(folder):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if ".layers." in name:
                layer = name.split(".layers.")[1].split(".")[0]
                sums[layer] = sums.get(layer, 0) + entry["data_offsets"][1] - entry["data_offsets"][0]
    return max(sums.values())


def drop_from_page_cache(folder: Path) -> None:
    """Have the next reader of the weights wait for the disk."""
    for path in weight_files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel does not tell RssAnon")


def busy_seconds() -> float:
    """What all processes have used of all CPUs since the machine started."""
    user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    return sum(map(int, (user, nice, system, *interrupts))) / os.sysconf("SC_CLK_TCK")


@dataclass
class Taken:
    """What one measurement took."""

    seconds: float = 0.0
    peak_bytes: int = 0
    """Anonymous memory above what there was before."""
    cpu_seconds: float = 0.0
    """Of all threads, in user and kernel mode: other processes disturb it less than ``seconds``."""
    load_seconds: float = 0.0
    """Part of ``seconds`` in which the whole model was loaded, where it was."""
    tokens: int = 0
    others: float = 0.0
    """CPUs that other processes kept busy meanwhile."""

    @property
    def compute_seconds(self) -> float:
        """What is left after loading."""
        return self.seconds - self.load_seconds

    def keep_best(self, other: Taken) -> Taken:
        """The least of both, each number for itself: other processes only ever add."""
        compute = min(self.compute_seconds, other.compute_seconds)
        best = {name: min(getattr(self, name), getattr(other, name)) for name in ("seconds", "cpu_seconds")}
        peak, load = max(self.peak_bytes, other.peak_bytes), min(self.load_seconds, other.load_seconds)
        if load:
            best["seconds"] = compute + load
        others = min(self.others, other.others)
        return Taken(peak_bytes=peak, load_seconds=load, tokens=self.tokens, others=others, **best)


@contextmanager
def measured() -> Iterator[Taken]:
    """Time and peak memory of a block, in what is yielded."""
    taken, done = Taken(), threading.Event()
    before = anonymous_bytes()
    peak = [before]

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, own, every = time.perf_counter(), time.process_time(), busy_seconds()
    try:
        yield taken
    finally:
        taken.seconds, taken.cpu_seconds = time.perf_counter() - started, time.process_time() - own
        taken.others = max(0.0, busy_seconds() - every - taken.cpu_seconds) / taken.seconds
        done.set()
        watcher.join()
        taken.peak_bytes = max(peak[0], anonymous_bytes()) - before


def in_process(module: str, *arguments: str) -> dict[str, Any]:
    """What ``python -m module --measure arguments`` prints as JSON in its last line; its errors are shown."""
    command = [sys.executable, "-m", module, "--measure", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def best_of(module: str, runs: int, peers: dict[str, list[str]], tries: int = 0) -> dict[str, Taken]:
    """The best of some runs of every peer (name to arguments), which take turns.

    A run that other processes disturbed is repeated, up to so many ``tries`` in all for each peer.
    """
    best: dict[str, Taken] = {}
    left, quiet = dict.fromkeys(peers, max(runs, tries)), dict.fromkeys(peers, runs)
    while any(left[name] and quiet[name] for name in peers):
        for name, arguments in peers.items():
            if not (left[name] and quiet[name]):
                continue
            taken = Taken(**in_process(module, *arguments))
            best[name] = best[name].keep_best(taken) if name in best else taken
            left[name] -= 1
            quiet[name] -= tries <= runs or taken.others < DISTURBED
    return best


class LoadingTime:
    """A Progress that only takes the time in which a whole model is loaded."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        started = time.perf_counter()
        yield lambda amount: None
        if title == "loading weights":
            self.seconds += time.perf_counter() - started

    def note(self, message: str) -> None:
        """Nobody reads it."""


def captured(folder: Path, corpus: str, engine: str, out: Path | None = None, **options: Any) -> Taken:
    """Capture once and measure it; loading of a whole model apart."""
    from moetool.capture.engine import CaptureOptions, capture
    from moetool.checkpoint.locate import locate
    from moetool.corpus.documents import read_corpus

    checkpoint, documents, loading = locate(str(folder), weights="files"), read_corpus([corpus]), LoadingTime()
    settings = CaptureOptions(**{"engine": engine, "device": "cpu", **options})
    with measured() as taken:
        trace = capture(checkpoint, documents, settings, folder=out, progress=loading)
    taken.load_seconds, taken.tokens = loading.seconds, len(trace.tokens)
    return taken


def exponent(sizes: list[float], values: list[float]) -> float:
    """The slope of a straight line through the logarithms: 1 where doubling one doubles the other."""
    xs, ys = [math.log(size) for size in sizes], [math.log(max(value, 1e-9)) for value in values]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - mean_x) ** 2 for x in xs)


@contextmanager
def page_cache_of(gigabytes: float | None) -> Iterator[None]:
    """Leave so much memory to programs and page cache together; another process takes the rest (needs no swap).

    Weights that are read again and again then come from the disk, as they do where they are larger than memory.
    """
    if gigabytes is None:
        yield
        return
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    taken = int(available.split()[1]) * 1024 - int(gigabytes * 1e9)
    code = (  # the first that the kernel ends, should memory run out
        "import mmap, sys; open('/proc/self/oom_score_adj', 'w').write('1000'); "
        f"room = mmap.mmap(-1, {taken}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE); "
        "print('taken', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hog:
        if not hog.stdout or hog.stdout.readline() != b"taken\n":
            raise SystemExit(f"cannot take {taken / 1e9:.1f} GB of memory")
        yield
        if hog.poll() is not None:
            raise SystemExit("the process that took the memory has ended: the page cache was larger than said")
        hog.terminate()


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder, on the disk that TMPDIR names."""
    with tempfile.TemporaryDirectory(prefix="moetool-benchmark-") as name:
        yield Path(name)
