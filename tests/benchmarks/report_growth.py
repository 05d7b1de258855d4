"""How time and memory of a report grow with the tokens of a trace, beside counting alone by pandas.

``python -m tests.benchmarks.report_growth [--tokens 250000,500000,1000000] [--layers 48] [--experts 128]
[--per-token 8] [--command route-stats|specialize]`` writes synthetic traces (documents of 1,000 tokens, skewed loads,
choices that stay) and runs the command on each in a process of its own; the peer reads the same files and counts tokens
per layer, expert and document
with ``value_counts``, which is what a notebook does first. Peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.measuring import exponent, workplace

DOCUMENT_TOKENS = 1000
PEER = """
import glob, sys, numpy as np, pandas as pd
for path in sorted(glob.glob(sys.argv[1] + "/*.chosen.npy")):
    chosen = np.load(path)
    document = np.repeat(np.arange(len(chosen)) // 1000, chosen.shape[1])
    pd.DataFrame({"document": document, "expert": chosen.ravel()}).value_counts()
"""
MEASURED = (
    "import resource, runpy, sys, atexit; atexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF)"
    ".ru_maxrss, file=sys.stderr)); "
)


def write_trace(folder: Path, tokens: int, layers: int, experts: int, per_token: int) -> None:
    """A trace as captures write it, with weights, scores and probabilities."""
    random = np.random.default_rng(0)
    folder.mkdir()
    lengths = [min(DOCUMENT_TOKENS, tokens - start) for start in range(0, tokens, DOCUMENT_TOKENS)]
    documents = [
        {"id": str(i), "domain": f"d{i % 8}", "group": str(i), "start": i * DOCUMENT_TOKENS, "tokens": n, "sha256": ""}
        for i, n in enumerate(lengths)
    ]
    rows = [
        {"layer": n, "experts": experts, "experts_per_token": per_token, "scoring": "softmax"} for n in range(layers)
    ]
    header = {"schema": "moetool.trace/1.0", "model": {"name": "synthetic"}, "layers": rows, "documents": documents,
              "settings": {}, "versions": {}}  # fmt: skip
    (folder / "trace.json").write_text(json.dumps(header))
    np.save(folder / "tokens.npy", (50000 * random.random(tokens) ** 4).astype(np.int32))
    words = {
        str(i): (str(i) if i % 7 == 0 else "." * (i % 3) if i % 11 == 0 else f" w{chr(97 + i % 26)}")
        for i in range(50000)
    }
    (folder / "vocabulary.json").write_text(json.dumps(words))
    np.save(folder / "special.npy", np.zeros(tokens, bool))
    np.save(folder / "scores.npy", scores := random.random((tokens, 4)).astype(np.float16))
    for layer in range(layers):
        base = np.sort(random.random((tokens, per_token)), axis=1) ** 1.5 * (experts - per_token)
        chosen = (base.astype(np.int64) + np.arange(per_token)).astype(np.uint8)  # distinct, low ids preferred
        kept = np.repeat(random.random((tokens + 3) // 4) < 0.3, 4)[:tokens]
        chosen[1:][kept[1:]] = chosen[:-1][kept[1:]]
        stem = f"layer-{layer:03d}"
        np.save(folder / f"{stem}.weight.npy", random.random((tokens, per_token)).astype(np.float16))
        np.save(folder / f"{stem}.scores.npy", scores)
        np.save(folder / f"{stem}.probability.npy", np.full((min(8, len(lengths)), experts), 1 / experts, np.float32))
        np.save(folder / f"{stem}.chosen.npy", chosen)


def measure(code: str, *arguments: str) -> tuple[float, int]:
    """Seconds and peak bytes of a process."""
    started = time.perf_counter()
    command = [sys.executable, "-c", MEASURED + code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if result.returncode:
        raise SystemExit(result.stderr[-2000:])
    return seconds, int(result.stderr.split()[-1]) * 1024


def main() -> None:
    """A row per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="250000,500000,1000000")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--per-token", type=int, default=8)
    parser.add_argument("--command", default="route-stats", choices=("route-stats", "specialize"))
    options = parser.parse_args()
    sizes = [int(size) for size in options.tokens.split(",")]
    command = "sys.argv = ['moetool', *sys.argv[1:]]; runpy.run_module('moetool', run_name='__main__')"
    times = []
    print(f"{'tokens':>9} {'report s':>9} {'MB':>6} {'pandas s':>9} {'ratio':>6}")
    for tokens in sizes:
        with workplace() as room:
            write_trace(room / "trace", tokens, options.layers, options.experts, options.per_token)
            seconds, peak = measure(command, options.command, str(room / "trace"), "--json")
            peer, _ = measure(PEER, str(room / "trace"))
        times.append(seconds)
        print(f"{tokens:9d} {seconds:9.1f} {peak / 1e6:6.0f} {peer:9.1f} {seconds / peer:6.2f}", flush=True)
    if len(sizes) > 1:
        print(f"grows with tokens to the power of {exponent([float(size) for size in sizes], times):.2f}")


if __name__ == "__main__":
    main()
