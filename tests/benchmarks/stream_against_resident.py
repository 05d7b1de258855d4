"""Peak anonymous memory and time of the streaming engine, as ratios to the resident engine in the same run.

``python -m tests.benchmarks.stream_against_resident [--gigabytes 1] [--tokens 4096]`` makes a random Mixtral-shaped
checkpoint in bfloat16 and captures the same corpus with both engines, each in a process of its own. What importing
torch and transformers takes is subtracted. Linux only (it reads RssAnon).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PEER, OURS = "resident", "stream"


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel does not tell RssAnon")


def measure(folder: str, corpus: str, engine: str) -> None:
    """Capture once in this process and print seconds and peak bytes as JSON."""
    from transformers import MixtralForCausalLM, PreTrainedTokenizerFast  # noqa: F401 - imports are not measured

    from moetool.capture.engine import CaptureOptions, capture
    from moetool.checkpoint.locate import locate
    from moetool.corpus.documents import read_corpus

    before, peak, done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    trace = capture(locate(folder, weights="files"), read_corpus([corpus]), CaptureOptions(engine=engine, device="cpu"))
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "peak_bytes": peak[0] - before, "tokens": len(trace.tokens)}))


def make_checkpoint(folder: Path, gigabytes: float, layers: int) -> None:
    """A Mixtral shape whose experts make up almost all of the wanted size."""
    import torch

    from tests.checkpoints import make_model, make_tokenizer

    hidden = 1024
    intermediate = int(gigabytes * 1e9 / 2 / layers / 8 / 3 / hidden) // 64 * 64
    shape = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 4096}
    make_model("mixtral", torch.bfloat16, **shape, **heads).save_pretrained(folder, max_shard_size="400MB")
    make_tokenizer().save_pretrained(folder)


def main() -> None:
    """Make, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, corpus = Path(name) / "model", Path(name) / "corpus.jsonl"
        make_checkpoint(folder, options.gigabytes, options.layers)
        lengths = [256] * (options.tokens // 256)
        corpus.write_text("".join(json.dumps({"text": chr(97 + i % 26) * n}) + "\n" for i, n in enumerate(lengths)))
        best: dict[str, dict[str, float]] = {}
        for run in range(options.runs):
            for engine in (PEER, OURS):
                command = [sys.executable, "-m", __spec__.name, "--measure", str(folder), f"x={corpus}", engine]
                result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(f"run {run} {engine:9s} {result['seconds']:6.2f} s  {result['peak_bytes'] / 1e6:7.0f} MB")
                if engine not in best or result["seconds"] < best[engine]["seconds"]:
                    best[engine] = result
    for key in ("seconds", "peak_bytes"):
        print(f"{OURS} / {PEER}, {key}: {best[OURS][key] / best[PEER][key]:.2f}")


if __name__ == "__main__":
    main()
