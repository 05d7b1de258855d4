"""Train the built-in model of moetool: a small Mixtral on a few domains of text.

One command trains tokenizer and model, measures held-out perplexity per domain against a unigram model,
samples some text and writes a checkpoint folder with a model card::

    python examples/train_demo.py --text code_python=code_python.jsonl --text fiction_en=fiction_en.jsonl --out demo

Every ``FILE`` is JSONL: ``text``, and optionally ``group`` (held out together) and ``source`` (named in the card).
It needs under an hour on two CPU cores and minutes on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy, one_hot
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"
HELD_OUT_SHARE = 0.08


def read_domains(arguments: list[str]) -> dict[str, list[dict]]:
    """Read every ``NAME=FILE`` of JSONL documents."""
    domains = {}
    for argument in arguments:
        name, _, path = argument.partition("=")
        if not path:
            raise SystemExit(f"--text takes NAME=FILE, not {argument!r}")
        with open(path, encoding="utf-8") as lines:
            domains[name] = [json.loads(line) for line in lines if line.strip()]
    return domains


def split_by_group(documents: list[dict], rng: random.Random) -> tuple[list[dict], list[dict]]:
    """Hold out whole groups, so that no excerpt of a training text is measured."""
    groups = sorted({document.get("group", document["text"]) for document in documents})
    rng.shuffle(groups)
    held_out = set(groups[: max(1, round(HELD_OUT_SHARE * len(groups)))])
    train = [document for document in documents if document.get("group", document["text"]) not in held_out]
    test = [document for document in documents if document.get("group", document["text"]) in held_out]
    return train, test


def train_tokenizer(domains: dict[str, list[dict]], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on an equal number of bytes of every domain; digits are single tokens."""
    budget = min(500_000, max(sum(len(d["text"].encode()) for d in docs) for docs in domains.values()))

    def texts():
        for documents in domains.values():
            used = 0
            for document in documents:
                if used > budget:
                    break
                used += len(document["text"].encode())
                yield document["text"]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS)


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[dict]) -> list[torch.Tensor]:
    """Token ids of each document, between BOS and EOS."""
    rows = tokenizer([document["text"] for document in documents])["input_ids"]
    return [torch.tensor([*row, tokenizer.eos_token_id]) for row in rows]


class Sampler:
    """Batches of windows; a domain's share is its tokens to the power 0.5, a third of the windows start a document."""

    def __init__(self, domains: dict[str, list[torch.Tensor]], length: int, generator: torch.Generator) -> None:
        self.streams = [torch.cat(documents) for documents in domains.values()]
        self.starts = [
            torch.cumsum(torch.tensor([0, *[len(d) for d in documents[:-1]]]), 0) for documents in domains.values()
        ]
        self.weights = torch.tensor([len(stream) for stream in self.streams]).float().sqrt()
        self.length, self.generator = length, generator

    def batch(self, size: int) -> torch.Tensor:
        """Token ids ``[size, length + 1]``."""
        rows = []
        for domain in torch.multinomial(self.weights, size, replacement=True, generator=self.generator).tolist():
            stream, starts = self.streams[domain], self.starts[domain]
            last = len(stream) - self.length - 1
            if torch.rand((), generator=self.generator) < 0.33:
                at = int(starts[torch.randint(len(starts), (), generator=self.generator)])
            else:
                at = int(torch.randint(last + 1, (), generator=self.generator))
            at = min(at, last)
            rows.append(stream[at : at + self.length + 1])
        return torch.stack(rows)


def balance_loss(router_logits: tuple[torch.Tensor, ...], experts_per_token: int) -> torch.Tensor:
    """Switch load-balancing loss, the mean over layers (1 at perfect balance)."""
    losses = []
    for logits in router_logits:
        probability = logits.float().softmax(-1)
        chosen = probability.topk(experts_per_token, dim=-1).indices
        experts = logits.shape[-1]
        share = one_hot(chosen, experts).float().sum((0, 1)) / chosen.numel()
        losses.append(experts * (share * probability.mean(0)).sum())
    return torch.stack(losses).mean()


def train(model: MixtralForCausalLM, sampler: Sampler, options: argparse.Namespace) -> dict[str, float]:
    """AdamW with warm-up and cosine decay; returns the last smoothed losses."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 100, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / options.steps))),
    )
    started, smooth = time.time(), {}
    model.train()
    for step in range(options.steps):
        batch = sampler.batch(options.batch).to(options.device)
        output = model(input_ids=batch[:, :-1], output_router_logits=True, labels=None)
        loss = cross_entropy(output.logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        balance = balance_loss(output.router_logits, model.config.num_experts_per_tok)
        (loss + options.balance * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        for name, value in (("loss_nats", loss.item()), ("balance_loss", balance.item())):
            smooth[name] = 0.98 * smooth.get(name, value) + 0.02 * value
        if step % 50 == 0 or step == options.steps - 1:
            seconds = time.time() - started
            print(
                f"step {step:5d}  loss {smooth['loss_nats']:.3f}  "
                f"balance {smooth['balance_loss']:.3f}  {seconds:6.0f} s",
                flush=True,
            )
        if options.checkpoint_every and step and step % options.checkpoint_every == 0:
            torch.save(model.state_dict(), f"{options.out}.state.pt")
    return smooth


@torch.no_grad()
def perplexity(model: MixtralForCausalLM, documents: list[torch.Tensor], length: int, device: str) -> float:
    """Held-out perplexity per token, windows of ``length`` tokens."""
    model.eval()
    total, count = 0.0, 0
    for document in documents:
        for at in range(0, len(document) - 1, length):
            window = document[at : at + length + 1].to(device)[None]
            if window.shape[1] < 2:
                continue
            logits = model(input_ids=window[:, :-1]).logits[0].float()
            total += cross_entropy(logits, window[0, 1:], reduction="sum").item()
            count += window.shape[1] - 1
    return math.exp(total / count)


def unigram_perplexity(train_rows: list[torch.Tensor], rows: list[torch.Tensor], vocabulary: int) -> float:
    """Perplexity of add-one unigram frequencies of the same domain: what knowing the domain alone would give."""
    counts = Counter(token for row in train_rows for token in row.tolist())
    total = sum(counts.values()) + vocabulary
    tokens = [token for row in rows for token in row.tolist()[1:]]
    return math.exp(-sum(math.log((counts[token] + 1) / total) for token in tokens) / len(tokens))


@torch.no_grad()
def sample(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, start: torch.Tensor, device: str) -> str:
    """A continuation of 60 tokens after the first three tokens of a held-out document."""
    ids = model.generate(start[None].to(device), max_new_tokens=60, do_sample=True, temperature=0.7, top_k=50)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def sources(documents: list[dict]) -> str:
    """``repository@commit`` of every document of a domain, each once."""
    return ", ".join(sorted({str(document.get("source", "unnamed")).split(":")[0] for document in documents}))


def write_card(out: Path, options: argparse.Namespace, facts: dict, rows: list[dict]) -> None:
    """The model card: data, training and what held-out text costs."""
    lines = [
        "# moetool demo model",
        "",
        f"A Mixtral of {facts['parameters']:,} parameters ({facts['experts']} experts, top-{facts['top_k']}, "
        f"{facts['layers']} layers, hidden size {facts['hidden']}, vocabulary {facts['vocabulary']}), trained from "
        "scratch by `examples/train_demo.py` to try moetool on. It has seen a few megabytes of text: it is no use for "
        "anything else.",
        "",
        f"- steps: {options.steps}, batches of {options.batch} x {options.length} tokens "
        f"({options.steps * options.batch * options.length:,} tokens seen)",
        f"- AdamW, learning rate {options.learning_rate}, cosine decay, weight decay 0.1, seed {options.seed}",
        f"- load-balancing loss (Switch, per layer), coefficient {options.balance}: "
        f"{facts['balance_loss']:.3f} at the end (1 is perfect balance)",
        f"- training loss at the end: {facts['loss_nats']:.3f} nats per token",
        f"- {facts['hardware']}, torch {torch.__version__}, {facts['minutes']:.0f} minutes",
        "",
        "| domain | documents | training tokens | held-out perplexity | unigram perplexity | source |",
        "|---|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {r['domain']} | {r['documents']} | {r['tokens']:,} | {r['perplexity']:.1f} | {r['unigram']:.1f} "
        f"| {r['source']} |"
        for r in rows
    ]
    lines += [
        "",
        f"Perplexity is per token on groups of documents that were held out ({HELD_OUT_SHARE:.0%}); the unigram model "
        "knows the token frequencies of the same domain and nothing else.",
        "",
        "Samples (temperature 0.7, top-k 50, after the first three tokens of a held-out document):",
        "",
    ]
    for row in rows:
        lines += [f"**{row['domain']}**", "", *("    " + line for line in row["sample"].split("\n")), ""]
    (out / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--balance", type=float, default=0.01)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=160)
    parser.add_argument("--intermediate", type=int, default=240)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=0)
    parser.add_argument("--resume", help="a state file of --checkpoint-every: measure and save it without training")
    return parser.parse_args()


def build_model(options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> MixtralForCausalLM:
    """A Mixtral with 8 experts, top-2 and tied embeddings."""
    config = MixtralConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 32,
        num_key_value_heads=1,
        head_dim=32,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=2048,
        sliding_window=None,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        router_aux_loss_coef=options.balance,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = MixtralForCausalLM(config)
    if options.device == "cpu":
        model.set_experts_implementation("eager")  # a tenth faster than the grouped matmul here
    return model.to(options.device)


def main() -> None:
    """Train, measure, save."""
    options = parse_arguments()
    torch.manual_seed(options.seed)
    started = time.time()
    domains = read_domains(options.text)
    rng = random.Random(options.seed)
    split = {name: split_by_group(documents, rng) for name, documents in domains.items()}
    tokenizer = train_tokenizer({name: pair[0] for name, pair in split.items()}, options.vocabulary)
    train_rows = {name: encode(tokenizer, pair[0]) for name, pair in split.items()}
    test_rows = {name: encode(tokenizer, pair[1]) for name, pair in split.items()}
    print({name: sum(map(len, rows)) for name, rows in train_rows.items()}, flush=True)

    model = build_model(options, tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters", flush=True)
    if options.resume:
        model.load_state_dict(torch.load(options.resume, weights_only=True))
        losses = {"loss_nats": math.nan, "balance_loss": math.nan}
    else:
        sampler = Sampler(train_rows, options.length, torch.Generator().manual_seed(options.seed))
        losses = train(model, sampler, options)

    model = model.to(torch.bfloat16).to(torch.float32)  # measure what is saved
    rows = []
    for name, documents in domains.items():
        rows.append(
            {
                "domain": name,
                "documents": len(documents),
                "tokens": sum(map(len, train_rows[name])),
                "perplexity": perplexity(model, test_rows[name], options.length, options.device),
                "unigram": unigram_perplexity(train_rows[name], test_rows[name], options.vocabulary),
                "source": sources(documents),
                "sample": sample(model, tokenizer, test_rows[name][0][:4], options.device),
            }
        )
        print(rows[-1], flush=True)
    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    facts = {
        "parameters": parameters,
        "experts": model.config.num_local_experts,
        "top_k": model.config.num_experts_per_tok,
        "layers": options.layers,
        "hidden": options.hidden,
        "vocabulary": options.vocabulary,
        "hardware": torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{torch.get_num_threads()} CPU threads",
        "minutes": (time.time() - started) / 60,
        **losses,
    }
    write_card(options.out, options, facts, rows)


if __name__ == "__main__":
    main()
