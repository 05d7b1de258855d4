"""Time and memory of both capture engines, as ratios to what else could be done with the same checkpoint and corpus.

``python -m tests.benchmarks.capture_against_peers [--family mixtral|qwen2_moe] [--gigabytes 1] [--batches 1,8,64]``
makes a random checkpoint in bfloat16 (few large or many small experts) and measures, each in a process of its own:

- ``stream`` and ``stream --out``: the stream engine, into memory and into a folder;
- ``resident``: the resident engine, loading and computing apart;
- ``read``: reading every byte of the weights once;
- ``offload``: transformers with every decoder layer on ``disk`` (accelerate), hooks that keep the choice;
- ``plain``: forwards of the loaded model without and with the engine's hooks, in turns in one process;
- ``script``: ``output_router_logits=True`` document by document, counted on the CPU, as published analyses do.

``others`` are CPUs that other processes used during the quietest run. Two threads that wait for each other lose far
more to them than their share: with others at work, OMP_NUM_THREADS=1 tells more. The page cache is warm; with
``--cold`` the weights are dropped from it before every measurement, and with ``--memory GB`` there is only so much
memory for programs and page cache together: with less than the weights take, they come from the disk every time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import (
    Shape,
    Taken,
    best_of,
    captured,
    drop_from_page_cache,
    in_process,
    layer_bytes,
    make_checkpoints,
    measured,
    page_cache_of,
    weight_files,
    workplace,
    write_corpus,
)

BATCH_TOKENS = 2048
PEERS = ("stream", "stream --out", "resident", "read", "offload", "script", "plain")
FORWARDS = 12
"""With hooks and without, when their cost is measured."""
ALLOWANCE_BYTES = 300_000_000
"""Beside two layers and the hidden states: what one batch needs in passing."""
LIMITS = {"time": 1.05, "memory": 1.0, "offload": 2.0, "hooks": 0.03}


def read_all(folder: Path) -> Taken:
    """Read the weights into one buffer."""
    buffer = memoryview(bytearray(16 << 20))
    with measured() as taken:
        for path in weight_files(folder):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):  # type: ignore[attr-defined]
                    pass
    return taken


def _job(folder: Path, corpus: str, batch_tokens: int) -> tuple[Any, list[Any]]:
    """What the engines make of checkpoint and corpus, and its batches."""
    from moetool.capture.batches import make_batches
    from moetool.capture.job import CaptureOptions, prepare
    from moetool.checkpoint.locate import locate
    from moetool.corpus.documents import read_corpus
    from moetool.progress import SilentProgress

    options = CaptureOptions(engine="resident", device="cpu", batch_tokens=batch_tokens)
    job = prepare(locate(str(folder), weights="files"), read_corpus([corpus]), options, SilentProgress())
    return job, make_batches(job.corpus, job.rows, job.padding_id)


def offload(folder: Path, corpus: str, batch_tokens: int) -> Taken:
    """Forwards of a model whose decoder layers accelerate fetches from the disk, each for every batch."""
    import torch
    from transformers import AutoModelForCausalLM

    job, batches = _job(folder, corpus, batch_tokens)
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places |= {f"model.layers.{number}": "disk" for number in range(len(job.stack.layers))}
    with measured() as taken, workplace() as room, torch.no_grad():
        started = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, device_map=places, offload_folder=str(room), offload_buffers=True
        )
        taken.load_seconds = time.perf_counter() - started
        kept: list[Any] = []
        for module in model.modules():
            if hasattr(module, "experts"):
                module.experts.register_forward_pre_hook(lambda _, args: kept.append((args[1].cpu(), args[2].cpu())))
        for batch in batches:
            model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    assert len(kept) == len(batches) * len(job.stack.moe_layers)
    taken.tokens = len(job.corpus.tokens)
    return taken


def script(folder: Path, corpus: str) -> Taken:
    """Router logits of one document after another, softmax and top K on the CPU, counts in a dictionary of arrays."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = [json.loads(line)["text"] for line in Path(corpus.partition("=")[2]).read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with measured() as taken:
        started = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        taken.load_seconds = time.perf_counter() - started
        experts = getattr(model.config, "num_local_experts", None) or model.config.num_experts
        counts: dict[int, Any] = {}
        for text in texts:
            with torch.no_grad():
                inputs = tokenizer(text, return_tensors="pt")
                output = model(**inputs, output_router_logits=True)
            for layer, logits in enumerate(output.router_logits):
                chosen = logits.float().softmax(-1).topk(model.config.num_experts_per_tok, dim=-1).indices
                here = np.bincount(chosen.flatten().cpu().numpy(), minlength=experts)
                counts[layer] = counts.get(layer, 0) + here
            taken.tokens += inputs["input_ids"].numel()
    return taken


def hook_cost(folder: Path, corpus: str, batch_tokens: int, forwards: int) -> dict[str, float]:
    """Seconds of one batch through the loaded model without hooks, and through the resident engine, in turns."""
    import numpy as np
    import torch

    from moetool.capture.resident import load_model, run_resident
    from moetool.capture.routers import find_decoder
    from moetool.progress import SilentProgress

    job, batches = _job(folder, corpus, batch_tokens)
    model = load_model(job.checkpoint, job.config, job.model_class, job.settings["dtype"], job.device)
    stack = find_decoder(model, job.family)
    counted = np.asarray([(~job.corpus.special).sum()])
    sizes = (len(job.corpus.tokens), counted)

    def plain() -> None:
        for batch in batches:
            with torch.inference_mode():
                stack.owner(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

    def hooked() -> None:
        for _ in run_resident(stack, stack.moe_layers, batches, *sizes, SilentProgress()):
            pass

    times: dict[Any, list[float]] = {plain: [], hooked: []}
    for turn in range(forwards + 1):
        for function in (plain, hooked) if turn % 2 else (hooked, plain):
            started = time.perf_counter()
            function()
            if turn:
                times[function].append(time.perf_counter() - started)
    pairs = [with_hooks / without - 1 for without, with_hooks in zip(*times.values(), strict=True)]
    return {
        "plain_seconds": min(times[plain]),
        "of_least": min(times[hooked]) / min(times[plain]) - 1,
        "median": statistics.median(pairs),
    }


def measure(peer: str, folder: Path, corpus: str, cold: bool, forwards: int, size: int) -> Any:
    """Run one peer in this process: first on the tiny checkpoint, then on the one that is measured."""
    run = {
        "stream": lambda model, text: captured(model, text, "stream", batch_tokens=size),
        "resident": lambda model, text: captured(model, text, "resident", batch_tokens=size),
        "read": lambda model, text: read_all(model),
        "offload": lambda model, text: offload(model, text, size),
        "script": script,
    }
    if peer == "plain":
        return hook_cost(folder / "model", corpus, size, forwards)
    with workplace() as room:
        run["stream --out"] = lambda model, text: captured(model, text, "stream", room / model.name, batch_tokens=size)
        if peer != "read":
            run[peer](folder / "tiny", write_corpus(room / "tiny.jsonl", BATCH_TOKENS))
        if cold:
            drop_from_page_cache(folder / "model")
        return asdict(run[peer](folder / "model", corpus))


def print_table(best: dict[str, Taken], folder: Path, bound_bytes: float) -> None:
    """A row per peer."""
    stored = sum(path.stat().st_size for path in weight_files(folder))
    print(
        f"{'':14} {'s':>8} {'load s':>7} {'CPU s':>7} {'tokens/s':>9} {'GB/s':>6} {'peak MB':>8} {'/bound':>7} others"
    )
    for name, taken in best.items():
        speed = f"{taken.tokens / taken.seconds:9.0f}" if taken.tokens else f"{'':9}"
        print(
            f"{name:14} {taken.seconds:8.2f} {taken.load_seconds:7.2f} {taken.cpu_seconds:7.1f} {speed} "
            f"{stored / taken.seconds / 1e9:6.2f} {taken.peak_bytes / 1e6:8.0f} {taken.peak_bytes / bound_bytes:7.2f} "
            f"{taken.others:6.2f}"
        )


def print_ratios(best: dict[str, Taken], bound_bytes: float) -> None:
    """What the engines are held to."""
    for name in ("stream", "stream --out"):
        if name not in best:
            continue
        ours = best[name]
        if "read" in best and "resident" in best:
            read, compute = best["read"].seconds, best["resident"].compute_seconds
            ratio = ours.seconds / max(read, compute)
            print(f"{name} / max(read, resident compute): {ratio:.3f} (target <= {LIMITS['time']})")
            print(f"{name} / (read + resident compute): {ours.seconds / (read + compute):.3f}")
        if "resident" in best:
            print(f"{name} / resident, with loading: {ours.seconds / best['resident'].seconds:.3f}")
            print(f"{name} / resident, peak memory: {ours.peak_bytes / best['resident'].peak_bytes:.3f}")
        ratio = ours.peak_bytes / bound_bytes
        print(f"{name} peak / (2 layers + hidden states + 300 MB): {ratio:.2f} (target <= {LIMITS['memory']})")
    for name in ("offload", "script"):
        if name in best and "stream" in best:
            whole, alone = best[name].seconds, best[name].compute_seconds
            ours = best["stream"].seconds
            target = f" (target >= {LIMITS[name]} from 8 batches on)" if name in LIMITS else ""
            print(f"{name} / stream: {whole / ours:.2f}, its forwards alone {alone / ours:.2f}{target}")


def compare(folder: Path, shape: Shape, batches: int, options: argparse.Namespace) -> None:
    """All peers with one corpus."""
    tokens = batches * options.batch_tokens
    corpus = write_corpus(folder / "corpus.jsonl", tokens)
    common = [str(folder), corpus, str(int(options.cold)), str(options.forwards), str(options.batch_tokens)]
    names = [name for name in PEERS if name in options.peers.split(",") and name != "plain"]
    best = best_of(__spec__.name, options.runs, {name: [name, *common] for name in names}, options.tries)
    bound = 2 * layer_bytes(folder / "model") + tokens * shape.hidden * 2 + ALLOWANCE_BYTES
    memory = f", {options.memory} GB of memory" if options.memory else ""
    cache = "cold" if options.cold else "warm"
    print(f"\n{batches} batches of {options.batch_tokens} tokens, {cache} page cache{memory}")
    print_table(best, folder / "model", bound)
    print_ratios(best, bound)


def print_hook_cost(folder: Path, options: argparse.Namespace) -> None:
    """The cost of hooks on one batch."""
    corpus = write_corpus(folder / "corpus.jsonl", options.batch_tokens)
    found = in_process(
        __spec__.name, "plain", str(folder), corpus, "0", str(options.forwards), str(options.batch_tokens)
    )
    print(
        f"\nhooks of the resident engine / plain forward ({found['plain_seconds']:.3f} s a batch), {options.forwards} "
        f"turns: least {found['of_least']:+.2%}, median of pairs {found['median']:+.2%} "
        f"(target <= {LIMITS['hooks']:.0%})"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--experts", type=int, help="default: 8 for mixtral, 64 for qwen2_moe")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--batches", default="1,8,64")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--tries", type=int, default=0, help="repeat disturbed runs, up to so many of each in all")
    parser.add_argument("--forwards", type=int, default=FORWARDS, help="turns in which the cost of hooks is measured")
    parser.add_argument("--family", choices=("mixtral", "qwen2_moe"), default="mixtral")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--memory", type=float, metavar="GB", help="take all memory but this from the machine")
    parser.add_argument("--measure", nargs=6, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Make, measure, compare."""
    options = parse()
    if options.measure:
        peer, folder, corpus, cold, forwards, size = options.measure
        print(json.dumps(measure(peer, Path(folder), corpus, cold == "1", int(forwards), int(size))))
        return
    experts = options.experts or {"mixtral": 8, "qwen2_moe": 64}[options.family]
    shape = Shape.sized(options.family, options.gigabytes, options.layers, experts, options.hidden)
    with workplace() as folder:
        make_checkpoints(folder, shape)
        print(f"{shape}, {layer_bytes(folder / 'model') / 1e6:.1f} MB a layer")
        with page_cache_of(options.memory):
            for batches in map(int, options.batches.split(",")):
                compare(folder, shape, batches, options)
        if "plain" in options.peers.split(","):
            print_hook_cost(folder, options)


if __name__ == "__main__":
    main()
