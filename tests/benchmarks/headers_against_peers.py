"""Time, peak memory and totals of ``moetool memory``, against a bare loop over the headers and against other tools.

``python -m tests.benchmarks.headers_against_peers [--runs 5] [--peers PYTHON]`` writes headers (no weights: the files
are sparse) in the shape of DeepSeek-V3 in FP8, 163 shards with its layer for multi-token prediction, and of
gpt-oss-120b in MXFP4. Each tool runs in a process of its own, one after another in every round. A peer runs in the
interpreter ``--peers``, for example of a virtual environment with hf-mem, or else in this one; those that neither can
import are named and left out. Cache: 131,072 tokens, batch 1, bfloat16. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

TIMEOUT_SECONDS = 120
LIMIT_BARE, LIMIT_SECONDS, LIMIT_BYTES = 3, 0.4, 300e6
"""What ``moetool memory`` may take: three times the bare loop and start-up; and bytes of resident memory."""


@dataclass(frozen=True)
class Tool:
    """A program that prints a JSON object: ``parameters``, ``bytes`` and ``kv_cache_bytes``, as far as it has them."""

    script: str
    module: str | None = None
    """What has to be importable; None for what always runs."""


BARE = """
import json, sys
from pathlib import Path
total = 0
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    total += sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())
print(json.dumps({"bytes": total}))
"""
OURS = """
import contextlib, io, json, sys
from moetool.cli import main
sys.argv = ["moetool", "memory", sys.argv[1], "--json"]
with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
    main()
summary = json.loads(text.getvalue())["summary"]
print(json.dumps({"parameters": summary["total_parameters"], "bytes": summary["total_bytes"],
                  "kv_cache_bytes": summary.get("kv_cache_bytes")}))
"""
SAFE_OPEN = """
import json, math, sys
from pathlib import Path
from safetensors import safe_open
total = 0
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    with safe_open(path, "numpy") as file:
        for name in file.keys():
            tensor = file.get_slice(name)
            total += math.prod(tensor.get_shape())
            tensor.get_dtype()
print(json.dumps({"parameters": total}))
"""
HUGGINGFACE_HUB = """
import json, sys
from huggingface_hub.hf_api import get_local_safetensors_metadata
found = get_local_safetensors_metadata(sys.argv[1])
tensors = [tensor for file in found.files_metadata.values() for tensor in file.tensors.values()]
print(json.dumps({"parameters": sum(found.parameter_count.values()),
                  "bytes": sum(tensor.data_offsets[1] - tensor.data_offsets[0] for tensor in tensors)}))
"""
HF_MEM = """
import json, sys, warnings
from pathlib import Path
import httpx2
from hf_mem import run
warnings.simplefilter("ignore")
folder, client = Path(sys.argv[1]), httpx2.AsyncClient
def serve(request):
    if "/tree/" in request.url.path:
        return httpx2.Response(200, json=[{"path": file.name, "type": "file"} for file in folder.iterdir()])
    with (folder / request.url.path.rsplit("/", 1)[1]).open("rb") as stream:
        if "range" not in request.headers:
            return httpx2.Response(200, content=stream.read())
        first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        stream.seek(first)
        return httpx2.Response(206, content=stream.read(last + 1 - first))
httpx2.AsyncClient = lambda **options: client(transport=httpx2.MockTransport(serve))
found = run("org/name", experimental=True, max_model_len=131072, kv_cache_dtype="bfloat16")
print(json.dumps({"parameters": found.safetensors.param_count, "bytes": found.memory,
                  "kv_cache_bytes": found.kv_cache}))
"""
"""Its only way to a model is the network: here a transport inside the process answers from the folder, in no time."""
ACCELERATE = """
import json, resource, sys
import torch
from accelerate import init_empty_weights
from accelerate.utils import calculate_maximum_sizes
from transformers import AutoConfig, AutoModel
resource.setrlimit(resource.RLIMIT_AS, (64 * 2**30, 64 * 2**30))
config = AutoConfig.from_pretrained(sys.argv[1])
with init_empty_weights():
    model = AutoModel.from_config(config, dtype=torch.float32)
print(json.dumps({"parameters": calculate_maximum_sizes(model)[0] / 4}))
"""
"""What ``accelerate estimate-memory`` does after asking the hub, which it does for folders too."""
TOOLS = {
    "bare loop": Tool(BARE),
    "moetool memory": Tool(OURS),
    "safetensors safe_open": Tool(SAFE_OPEN, "safetensors"),
    "huggingface_hub": Tool(HUGGINGFACE_HUB, "huggingface_hub"),
    "hf-mem": Tool(HF_MEM, "hf_mem"),
    "accelerate": Tool(ACCELERATE, "accelerate"),
}


@dataclass(frozen=True)
class Model:
    """A published model, with what is true of it."""

    config: Mapping[str, Any]
    shards: int
    parameters: int
    """As published, without multi-token prediction: of every kind that is trained."""
    kv_cache_bytes: int


TOKENS = 131_072
MODELS = {
    "DeepSeek-V3": Model(
        {
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 129280,
            "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
            "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
            "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "moe_layer_freq": 1,
            "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
            "v_head_dim": 128, "max_position_embeddings": 163840, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16", "num_nextn_predict_layers": 1,
            "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        },
        163, 671_026_404_352, TOKENS * 61 * (512 + 64) * 2,
    ),
    "gpt-oss-120b": Model(
        {
            "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880,
            "intermediate_size": 2880, "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8,
            "head_dim": 64, "num_local_experts": 128, "num_experts_per_tok": 4, "sliding_window": 128,
            "attention_bias": True, "layer_types": ["sliding_attention", "full_attention"] * 18,
            "max_position_embeddings": TOKENS, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "quantization_config": {"quant_method": "mxfp4"},
        },
        15, 116_829_156_672, 18 * (TOKENS + 128) * 2 * 8 * 64 * 2,
    ),
}  # fmt: skip


def deepseek_v3() -> Iterable[tuple[str, str, list[int]]]:
    """Names, types and shapes; projections in FP8 with a scale per block of 128 x 128."""
    from tests.model.test_facts import deepseek_v3_names

    for name, shape in deepseek_v3_names():
        quantized = name.endswith(("_proj", "_mqa")) and not name.endswith("eh_proj")
        yield f"{name}.weight", "F8_E4M3" if quantized else "BF16", shape
        if quantized:
            yield f"{name}.weight_scale_inv", "F32", [-(-extent // 128) for extent in shape]
        if name.endswith("mlp.gate"):
            yield f"{name}.e_score_correction_bias", "F32", [256]


def gpt_oss_120b() -> Iterable[tuple[str, str, list[int]]]:
    """Names, types and shapes; experts fused, two 4-bit numbers a byte, a scale for 32 of them."""
    hidden, wide = 2880, 64 * 64
    yield from (("model.embed_tokens.weight", "BF16", [201088, hidden]), ("lm_head.weight", "BF16", [201088, hidden]))
    yield "model.norm.weight", "BF16", [hidden]
    for layer in range(36):
        block = f"model.layers.{layer}"
        for name, rows in (("gate_up_proj", 2 * hidden), ("down_proj", hidden)):
            yield f"{block}.mlp.experts.{name}_blocks", "U8", [128, rows, hidden // 32, 16]
            yield f"{block}.mlp.experts.{name}_scales", "U8", [128, rows, hidden // 32]
            yield f"{block}.mlp.experts.{name}_bias", "BF16", [128, rows]
        linear = {"mlp.router": (128, hidden), "self_attn.q_proj": (wide, hidden), "self_attn.o_proj": (hidden, wide)}
        for name, shape in (linear | dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (512, hidden))).items():
            yield f"{block}.{name}.weight", "BF16", list(shape)
            yield f"{block}.{name}.bias", "BF16", [shape[0]]
        yield f"{block}.self_attn.sinks", "BF16", [64]
        yield from ((f"{block}.{name}_layernorm.weight", "BF16", [hidden]) for name in ("input", "post_attention"))


def write_models(folder: Path) -> None:
    """Write both; in a process of its own, because the peak of a child cannot be below its parent's size."""
    from tests.stored import write_checkpoint

    for (name, model), tensors in zip(MODELS.items(), (deepseek_v3(), gpt_oss_120b()), strict=True):
        kinds = {tensor: (dtype, shape) for tensor, dtype, shape in tensors}
        write_checkpoint(folder / name, model.config, kinds, model.shards)


@dataclass
class Runs:
    """Runs of one tool on one model."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    found: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def run(self, command: list[str]) -> None:
        """Run once more; a tool that fails keeps the last line of its error."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=output, stderr=errors)
            timer = threading.Timer(TIMEOUT_SECONDS, process.kill)
            timer.start()
            _, status, usage = os.wait4(process.pid, 0)
            timer.cancel()
            self.seconds.append(time.perf_counter() - started)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.peak_bytes = max(self.peak_bytes, usage.ru_maxrss * 1024)
            output.seek(0)
            errors.seek(0)
            if process.returncode:
                lines = errors.read().decode(errors="replace").strip().splitlines()
                self.error = lines[-1] if lines else f"ended by signal {-process.returncode}"
            else:
                self.found = json.loads(output.read())

    def row(self, truth: Mapping[str, int]) -> str:
        """Seconds, memory, and what was found as a multiple of the truth."""
        times = f"{min(self.seconds):7.2f} {median(self.seconds):7.2f} {self.peak_bytes / 1e6:7.0f}"
        if self.error:
            return f"{times}  fails: {self.error[:160]}"
        shares = (
            self.found.get(key) and f"{self.found[key]:,.0f} = {self.found[key] / truth[key]:.3f}" for key in truth
        )
        return times + "".join(f"  {share or '-':>26}" for share in shares)


def installed(python: str, tool: Tool) -> bool:
    """Whether an interpreter can import what a tool needs."""
    test = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({tool.module!r}) is None)"
    return tool.module is None or subprocess.run([python, "-c", test], check=False).returncode == 0


def measure(folder: Path, model: Model, tools: Mapping[str, str], runs: int) -> None:
    """Run the tools (name to interpreter) on one model in turns, and print what they took and found."""
    results = {name: Runs() for name in tools}
    for _ in range(runs):
        for name, python in tools.items():
            results[name].run([python, "-c", TOOLS[name].script, str(folder)])
    stored = results["bare loop"].found["bytes"]
    truth = {"parameters": model.parameters, "bytes": stored, "kv_cache_bytes": model.kv_cache_bytes}
    print(f"\n{folder.name}, {model.shards} files; the truth: {', '.join(f'{v:,} {k}' for k, v in truth.items())}")
    print(f"{'':22} best s  median  MB peak" + "".join(f"  {key:>26}" for key in truth))
    for name, result in results.items():
        print(f"{name:22}{result.row(truth)}")
    bare, ours = results["bare loop"], results["moetool memory"]
    for what, choose in (("best", min), ("median", median)):
        ratio = choose(ours.seconds) / (LIMIT_BARE * choose(bare.seconds) + LIMIT_SECONDS)
        print(f"moetool memory / ({LIMIT_BARE} x bare loop + {LIMIT_SECONDS} s), {what}: {ratio:.2f}")
    print(f"peak / {LIMIT_BYTES / 1e6:.0f} MB: {ours.peak_bytes / LIMIT_BYTES:.2f}")
    for name in list(tools)[2:]:
        print(f"moetool memory / {name}, best seconds: {min(ours.seconds) / min(results[name].seconds):.2f}")


def main() -> None:
    """Write, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="interpreter with the peers")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_models(options.write)
        return
    tools = {}
    for name, tool in TOOLS.items():
        pythons = [sys.executable] if tool.script in (BARE, OURS) else [options.peers, sys.executable]
        python = next((python for python in pythons if installed(python, tool)), None)
        if python is None:
            print(f"{name} is not installed: left out")
        else:
            tools[name] = python
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", __spec__.name, "--write", folder], check=True)
        for name, model in MODELS.items():
            measure(Path(folder) / name, model, tools, options.runs)


if __name__ == "__main__":
    main()
