"""How time and memory of the stream engine grow with tokens, with layers and with experts.

``python -m tests.benchmarks.capture_growth`` doubles one of them at a time and prints the exponent of a fit on
logarithms: 1 is linear. Layers and experts keep their size, so the checkpoint grows with both; every token is computed
by the same number of experts, so the number of experts should cost reading only, and the number of layers no memory.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from tests.benchmarks.measuring import (
    Shape,
    Taken,
    best_of,
    captured,
    exponent,
    make_checkpoints,
    workplace,
    write_corpus,
)

BATCH_TOKENS = 2048


def sweep(what: str, base: Shape, batches: int, steps: int, runs: tuple[int, int]) -> None:
    """Double one quantity and print what the engine takes."""
    sizes, taken = [], []
    print(f"\n{what:>8} {'s':>8} {'CPU s':>7} {'peak MB':>8} others")
    for step in range(steps):
        factor = 2**step
        shape = base if what == "tokens" else replace(base, **{what: getattr(base, what) * factor})
        tokens = batches * BATCH_TOKENS * (factor if what == "tokens" else 1)
        sizes.append(tokens if what == "tokens" else getattr(shape, what))
        taken.append(take(shape, tokens, runs))
        last = taken[-1]
        times = f"{last.seconds:8.2f} {last.cpu_seconds:7.1f}"
        print(f"{sizes[-1]:8d} {times} {last.peak_bytes / 1e6:8.0f} {last.others:6.2f}", flush=True)
    time_slope = exponent(sizes, [one.seconds for one in taken])
    memory_slope = exponent(sizes, [one.peak_bytes for one in taken])
    print(f"grows with {what} to the power of {time_slope:.2f} (time), {memory_slope:.2f} (peak memory)")


def take(shape: Shape, tokens: int, runs: tuple[int, int]) -> Taken:
    """The best of some captures of a new checkpoint."""
    with workplace() as folder:
        make_checkpoints(folder, shape)
        corpus = write_corpus(folder / "corpus.jsonl", tokens)
        return best_of(__spec__.name, runs[0], {"stream": [str(folder), corpus]}, runs[1])["stream"]


def main() -> None:
    """Three sweeps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--tries", type=int, default=0, help="repeat disturbed runs, up to so many of each in all")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, corpus = Path(options.measure[0]), options.measure[1]
        captured(folder / "tiny", write_corpus(folder / "tiny.jsonl", BATCH_TOKENS), "stream")
        print(json.dumps(asdict(captured(folder / "model", corpus, "stream"))))
        return
    base = Shape("mixtral", options.layers, options.experts, 2, options.hidden, 2 * options.hidden)
    for what in ("tokens", "layers", "experts"):
        sweep(what, base, options.batches, options.steps, (options.runs, options.tries))


if __name__ == "__main__":
    main()
