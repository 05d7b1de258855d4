"""Watch a router collapse: the same small Mixture-of-Experts, trained with and without its balance loss.

Two models of 8 experts, one per token, learn moetool's built-in corpora from the same seed, in the same order; only
``router_aux_loss_coef`` differs. ``RouterMonitor`` logs the load while they train, and ``moetool route-stats`` then
reports where each of them sends the same text::

    python examples/router_collapse.py --out collapse

It prints both reports and the last log of both (the first loss has the balance loss in it), and leaves
``router_collapse.png``, ``log.json``, the reports and the checkpoints in the folder. A minute or two on two CPU cores.

Why it collapses: an expert's output is multiplied by its probability, so the gradient raises the probability of
whichever expert was chosen and helped. It is chosen more often, learns more, and helps more. While hidden states are
still much alike, that happens to all tokens at once. The balance loss E sum_e f_e P_e lowers the probability P_e of
experts in proportion to their load f_e.

What is chosen to show it in minutes: the router learns ten times as fast as the rest, one expert per token leaves no
second choice, and the weight is the bare probability (``norm_topk_prob=False``; normalised, a single weight is always 1
and the router learns nothing). Only the second of two layers has experts, because the loss of transformers averages f
and P over the layers before it multiplies them: several layers may then be unbalanced in ways that cancel.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.utils.logging import disable_progress_bar

import moetool
from moetool import RouterMonitor

DEMO = Path(moetool.__file__).parent / "demo"
CORPORA = sorted((DEMO / "corpora").glob("*.jsonl"))
RUNS = {"balance loss": 0.1, "no balance loss": 0.0}
"""``router_aux_loss_coef`` of the two models."""
LENGTH, BATCH = 128, 8
LEARNING_RATE, ROUTER_LEARNING_RATE = 3e-3, 3e-2
COLUMNS = ("loss", "max_violation", "load_entropy", "dead_experts", "router_entropy")


def read_rows(tokenizer: PreTrainedTokenizerFast) -> list[dict[str, torch.Tensor]]:
    """All corpora, one after another, as rows of LENGTH tokens."""
    tokens: list[int] = []
    for path in CORPORA:
        for line in path.read_text(encoding="utf-8").splitlines():
            tokens += [*tokenizer(json.loads(line)["text"]).input_ids, tokenizer.eos_token_id]
    rows = torch.tensor(tokens[: len(tokens) // LENGTH * LENGTH]).view(-1, LENGTH)
    return [{"input_ids": row, "labels": row} for row in rows]


def make_model(tokenizer: PreTrainedTokenizerFast, balance: float, seed: int) -> Qwen3MoeForCausalLM:
    """A dense layer and one of 8 experts, top-1."""
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        mlp_only_layers=[0],
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=1,
        norm_topk_prob=False,
        tie_word_embeddings=True,
        output_router_logits=balance > 0,
        router_aux_loss_coef=balance,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation("eager")
    return model


def make_optimizer(model: Qwen3MoeForCausalLM) -> torch.optim.Optimizer:
    """AdamW, with a learning rate of its own for the router."""
    named = list(model.named_parameters())
    router = [parameter for name, parameter in named if name.endswith("mlp.gate.weight")]
    rest = [parameter for name, parameter in named if not name.endswith("mlp.gate.weight")]
    groups = [{"params": rest, "lr": LEARNING_RATE}, {"params": router, "lr": ROUTER_LEARNING_RATE}]
    return torch.optim.AdamW(groups, weight_decay=0.0)


def train(folder: Path, balance: float, options: argparse.Namespace) -> list[dict[str, float]]:
    """Train a model, save it, and return its logs of the training loss, ``step`` among them."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    model = make_model(tokenizer, balance, options.seed)
    arguments = TrainingArguments(
        str(folder),
        max_steps=options.steps,
        per_device_train_batch_size=BATCH,
        lr_scheduler_type="linear",
        warmup_steps=20,
        logging_steps=max(1, options.steps // 24),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=options.seed,
    )
    trainer = Trainer(model, arguments, train_dataset=read_rows(tokenizer), optimizers=(make_optimizer(model), None))
    trainer.remove_callback(PrinterCallback)
    RouterMonitor().add_to(trainer)
    trainer.train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return [record for record in trainer.state.log_history if "loss" in record]


def report(folder: Path) -> dict[str, Any]:
    """Print moetool's report of a model on the corpora, and return it as JSON."""
    texts = [argument for path in CORPORA for argument in ("--text", f"{path.stem}={path}")]
    saved = folder.with_suffix(".json")
    command = [sys.executable, "-m", "moetool", "route-stats", str(folder), *texts, "--device", "cpu", "--quiet"]
    subprocess.run([*command, "--save", str(saved)], check=True)
    return json.loads(saved.read_text(encoding="utf-8"))


def print_table(logs: dict[str, list[dict[str, float]]]) -> None:
    """The last log of every run."""
    print(f"\n{'':16}{''.join(f'{name:>16}' for name in ('step', *COLUMNS))}")
    for name, records in logs.items():
        last = records[-1]
        values = (last["step"], last["loss"], *(last[f"router/mean/{column}"] for column in COLUMNS[1:]))
        print(f"{name:16}{''.join(f'{value:16.3f}' for value in values)}")


def draw(logs: dict[str, list[dict[str, float]]], reports: dict[str, dict[str, Any]], path: Path) -> None:
    """Max violation over steps, and the load of every expert at the end, the busiest first."""
    figure, (over_steps, at_end) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, (name, records) in enumerate(logs.items()):
        steps = [record["step"] for record in records]
        over_steps.plot(steps, [record["router/worst/max_violation"] for record in records], label=name)
        loads = sorted((row["utilization"] for row in reports[name]["tables"]["experts"]), reverse=True)
        places = [place + 0.4 * number for place in range(1, len(loads) + 1)]
        at_end.bar(places, loads, width=0.4, align="edge", label=name)
    over_steps.axhline(len(loads) - 1, color="gray", linestyle=":", label="all tokens to one expert")
    over_steps.set(
        title="Max violation while training", xlabel="step", ylabel="max load / mean load - 1", ylim=(0, None)
    )
    at_end.axhline(1, color="gray", linestyle=":", label="perfect balance")
    at_end.set(title="Load after training", xlabel="experts, the busiest first", ylabel="load / mean load")
    at_end.set_xticks([place + 0.4 for place in range(1, len(loads) + 1)], [str(n) for n in range(1, len(loads) + 1)])
    for axes in (over_steps, at_end):
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train both, report both, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder, made where it is missing")
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    disable_progress_bar()
    logs, reports = {}, {}
    for name, balance in RUNS.items():
        folder = options.out / name.replace(" ", "_")
        print(f"\n{name} (router_aux_loss_coef {balance}): {options.steps} steps", flush=True)
        logs[name] = train(folder, balance, options)
        reports[name] = report(folder)
    (options.out / "log.json").write_text(json.dumps(logs, indent=1), encoding="utf-8")
    print_table(logs)
    draw(logs, reports, options.out / "router_collapse.png")
    print(f"\n{options.out / 'router_collapse.png'}")


if __name__ == "__main__":
    main()
