"""Which of transformers' ways of computing experts is the fastest on a device: the evidence for a default of each.

``python -m tests.benchmarks.experts_implementations [--device cuda] [--tokens 2048]`` runs the experts of Mixtral or
Qwen2-MoE alone, with random weights and choices, in turns; it prints the least milliseconds of each and their ratio to
the fastest, of time and of additional peak memory where the device tells it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
SHAPES = {
    "cpu": [(8, 2, 1024, 1216), (8, 2, 2048, 2048), (16, 2, 1024, 512), (64, 4, 1024, 160), (128, 8, 512, 96)],
    "cuda": [(8, 2, 4096, 14336), (60, 4, 2048, 1408), (128, 8, 2048, 768), (256, 8, 7168, 2048), (64, 8, 2048, 1024)],
}
"""Experts, experts per token, hidden size, intermediate size."""
TOKENS = {"cpu": (256, 2048), "cuda": (2048, 16384)}
BATCHED_BYTES = 6e9
"""``batched_mm`` copies the weights of an expert for every token that chose it; it is left out above so many bytes."""


def make_experts(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Any:
    """The experts of one layer with random weights."""
    from transformers import AutoConfig
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts

    experts, per_token, hidden, intermediate = shape
    config = AutoConfig.for_model(
        "qwen2_moe",
        hidden_size=hidden,
        moe_intermediate_size=intermediate,
        num_experts=experts,
        num_experts_per_tok=per_token,
    )
    with torch.device(device):
        module = Qwen2MoeExperts(config).to(dtype)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return module.eval()


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """One call, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


@torch.inference_mode()
def compare(
    shape: tuple[int, ...], tokens: int, dtype: torch.dtype, device: torch.device, turns: int
) -> dict[str, float]:
    """Least seconds of every implementation; those that fail or need too much memory are left out."""
    experts, per_token, hidden, _ = shape
    module = make_experts(shape, dtype, device)
    inputs = torch.randn(tokens, hidden, device=device).to(dtype)
    weight, chosen = torch.rand(tokens, experts, device=device).softmax(-1).topk(per_token)
    weight = weight.to(dtype)
    best: dict[str, float] = {}
    selected = tokens * per_token * module.gate_up_proj[0].numel() * inputs.element_size()
    names = [name for name in IMPLEMENTATIONS if name != "batched_mm" or selected < BATCHED_BYTES]
    for turn in range(turns + 1):
        for name in list(names):
            module.config._experts_implementation = name
            few = name == "batched_mm" and turn > 1
            try:
                taken = 0.0 if few else seconds(lambda: module(inputs, chosen, weight), device)
            except (RuntimeError, NotImplementedError) as error:
                print(f"  {name}: {str(error).splitlines()[0][:100]}")
                names.remove(name)
                continue
            if turn and not few:
                best[name] = min(taken, best.get(name, taken))
    return best


def main() -> None:
    """A line for every shape, dtype and number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--tokens", help="numbers of tokens, with commas")
    parser.add_argument("--shapes", help="E.K.H.I, with commas")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    device = torch.device(options.device)
    shapes = SHAPES.get(device.type, SHAPES["cpu"])
    if options.shapes:
        shapes = [tuple(map(int, one.split("."))) for one in options.shapes.split(",")]
    tokens = TOKENS.get(device.type, TOKENS["cpu"])
    if options.tokens:
        tokens = tuple(map(int, options.tokens.split(",")))
    print(f"{device}: ms (times the fastest)")
    print(f"{'E':>4} {'K':>2} {'H':>5} {'I':>6} {'T':>6} {'dtype':9}" + "".join(f"{n:>20}" for n in IMPLEMENTATIONS))
    for shape in shapes:
        for dtype in options.dtypes.split(","):
            for count in tokens:
                best = compare(shape, count, DTYPES[dtype], device, options.turns)
                fastest = min(best, key=lambda name: best[name])
                cells = (
                    f"{best[name] * 1e3:11.2f} ({best[name] / best[fastest]:5.2f})" if name in best else "-"
                    for name in IMPLEMENTATIONS
                )
                sizes = f"{shape[0]:4d} {shape[1]:2d} {shape[2]:5d} {shape[3]:6d} {count:6d} {dtype:9}"
                print(sizes + "".join(f"{cell:>20}" for cell in cells) + f"  {fastest}", flush=True)


if __name__ == "__main__":
    main()
