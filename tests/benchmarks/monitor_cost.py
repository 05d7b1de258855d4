"""What RouterMonitor costs: seconds of training steps without it and with it, in turns.

    python -m tests.benchmarks.monitor_cost --family qwen2_moe --layers 4 --hidden 512

A step is forward, backward and AdamW of one batch of random tokens, half a row of it padding; with the monitor there
are its hooks and, at every ``--every`` steps, its metrics. A turn is without, without again, and with, in an order that
goes round; the median over turns of with to without stands beside that of without to without, which is the noise.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from moetool import RouterMonitor
from tests.benchmarks.measuring import Shape
from tests.checkpoints import make_model

LIMIT = 0.02


class Training:
    """A model, one batch, and an optimizer."""

    def __init__(self, shape: Shape, rows: int, length: int, device: str) -> None:
        self.device = device
        dtype, experts = (torch.bfloat16, "grouped_mm") if device == "cuda" else (torch.float32, "eager")
        self.model = make_model(shape.family, dtype, **shape.config()).to(device).train()
        self.model.set_experts_implementation(experts)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.ids = torch.randint(3, 300, (rows, length), device=device)
        self.mask = torch.ones_like(self.ids)
        self.mask[-1, length // 2 :] = 0

    def steps(self, count: int, monitor: RouterMonitor | None = None) -> float:
        """Train, have the monitor report at the end, and return the seconds of one step."""
        started = time.perf_counter()
        for _ in range(count):
            self.model(input_ids=self.ids, attention_mask=self.mask, labels=self.ids).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if monitor:
            monitor.metrics()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / count


def measure(training: Training, turns: int, every: int) -> tuple[float, list[float], list[float]]:
    """Seconds of a step without the monitor, what the monitor adds to it in each turn, and what nothing adds."""
    plain, added, noise = [], [], []
    for turn in range(turns + 1):
        seconds = {}
        kinds = ["plain", "again", "watched"]
        for kind in kinds[turn % 3 :] + kinds[: turn % 3]:
            if kind == "watched":
                with RouterMonitor(training.model) as monitor:
                    seconds[kind] = training.steps(every, monitor)
            else:
                seconds[kind] = training.steps(every)
        if turn:
            plain += [seconds["plain"], seconds["again"]]
            added.append(2 * seconds["watched"] / (seconds["plain"] + seconds["again"]) - 1)
            noise.append(seconds["again"] / seconds["plain"] - 1)
    return min(plain), added, noise


def main() -> None:
    """Make, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="qwen2_moe", choices=("mixtral", "qwen2_moe"))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--intermediate", type=int, default=256)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--every", type=int, default=5, help="steps of one turn, at whose end the metrics are taken")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    per_token = 2 if options.family == "mixtral" else 4
    shape = Shape(options.family, options.layers, options.experts, per_token, options.hidden, options.intermediate)
    seconds, added, noise = measure(
        Training(shape, options.rows, options.length, options.device), options.turns, options.every
    )
    print(
        f"{shape}, {options.rows} x {options.length} tokens on {options.device}, metrics every {options.every} steps\n"
        f"step {seconds:.4f} s, {options.turns} turns: the monitor adds {statistics.median(added):+.2%} "
        f"(median; target <= {LIMIT:.0%}), nothing adds {statistics.median(noise):+.2%}"
    )


if __name__ == "__main__":
    main()
