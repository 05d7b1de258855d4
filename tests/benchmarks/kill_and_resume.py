"""Kills ``moetool capture`` at random moments, resumes it, and compares the trace with one that was never disturbed.

``python -m tests.benchmarks.kill_and_resume [--kills 10]`` sends SIGKILL somewhere between the first and the last layer
and prints how many layers were finished, where the next run began, and whether every file is the same byte for byte.
It ends with status 1 if one is not.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.benchmarks.measuring import Shape, call, workplace, write_corpus

BATCH_TOKENS = 1024


def start(model: Path, corpus: str, out: Path) -> subprocess.Popen[str]:
    """The command, which reports to the terminal it thinks it has."""
    command = [sys.executable, "-m", "moetool", "capture", str(model), "--text", corpus, "--device", "cpu"]
    command += ["--engine", "stream", "--batch-tokens", str(BATCH_TOKENS), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finished(out: Path) -> list[int]:
    """The decoder layers that are complete."""
    return sorted(int(re.findall(r"\d+", path.name)[0]) for path in out.glob("layer-*.chosen.npy"))


def wait_for(out: Path, process: subprocess.Popen[str], layers: int) -> float:
    """The moment at which so many layers are complete, or the process has ended."""
    while process.poll() is None and len(finished(out)) < layers:
        time.sleep(0.005)
    return time.perf_counter()


def capture_whole(model: Path, corpus: str, out: Path, layers: int) -> float:
    """Run once undisturbed; returns the seconds from the first complete layer to the last."""
    process = start(model, corpus, out)
    drain = threading.Thread(target=process.communicate)
    drain.start()
    first, last = wait_for(out, process, 1), wait_for(out, process, layers)
    drain.join()
    if process.returncode:
        raise SystemExit(f"moetool capture ended with {process.returncode}")
    return last - first


def kill(model: Path, corpus: str, out: Path, after: float) -> tuple[bool, list[int], list[str]]:
    """Kill a run so many seconds after its first layer; whether it lived that long, finished layers, saved states."""
    process = start(model, corpus, out)
    before = len(finished(out))
    wait_for(out, process, before + 1)
    time.sleep(after)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return running, finished(out), sorted(path.name for path in out.glob("hidden-*"))


def resume(model: Path, corpus: str, out: Path) -> str:
    """Run to the end; returns what it said about resuming."""
    process = start(model, corpus, out)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the resumed run ended with {process.returncode}:\n{errors[-2000:]}")
    said = re.findall(r"resuming at layer \d+|starting at an earlier layer", errors)
    return ", ".join(dict.fromkeys(said)) or "from the beginning"


def differences(one: Path, other: Path) -> list[str]:
    """Names of files that only one folder has, or that differ."""
    contents = [{str(p.relative_to(d)): p.read_bytes() for p in d.rglob("*") if p.is_file()} for d in (one, other)]
    return sorted(
        name for name in contents[0].keys() | contents[1].keys() if contents[0].get(name) != contents[1].get(name)
    )


def main() -> None:
    """Make a checkpoint, capture it whole, then kill and resume."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chooser, wrong = random.Random(options.seed), 0
    shape = Shape("mixtral", options.layers, 8, 2, options.hidden, 2 * options.hidden)
    with workplace() as folder:
        model, reference = folder / "model", folder / "whole"
        call("make_checkpoint", {model: shape})
        corpus = write_corpus(folder / "corpus.jsonl", options.batches * BATCH_TOKENS)
        span = capture_whole(model, corpus, reference, options.layers)
        print(f"{options.layers} layers; {span:.2f} s from the first to the last")
        for number in range(options.kills):
            out = folder / f"killed-{number}"
            running, layers, states = kill(model, corpus, out, chooser.uniform(0, span))
            moment = f"killed with {len(layers):2d} of {options.layers} layers finished" if running else "was through"
            said = resume(model, corpus, out) if running else ""
            found = differences(reference, out)
            wrong += bool(found)
            verdict = "same bytes" if not found else f"DIFFERENT: {', '.join(found)}"
            print(f"{number:3d} {moment}, {' '.join(states) or 'no state'}; {said}; {verdict}", flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
