"""Which quantised checkpoints run and which are refused, ``--quantize``, and the numbers against their libraries."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from moetool import cli
from moetool.capture import quantized
from moetool.capture.choices import pick_engine
from moetool.capture.engine import CaptureOptions, capture
from moetool.capture.loading import compute_dtype
from moetool.checkpoint.locate import locate
from moetool.checkpoint.types import Checkpoint, TensorInfo
from moetool.commands.provenance import made_with
from moetool.corpus.documents import read_corpus
from moetool.errors import MoetoolError
from moetool.model.families import family_of
from moetool.progress import SilentProgress
from tests.capture.test_engines import run
from tests.checkpoints import edit_config, save_checkpoint, write_corpus
from tests.quantized_cases import FLOAT, INT, NVFP4, compressed, group

MIXTRAL = family_of({"model_type": "mixtral"})


def checkpoint_of(settings, *tensors, **config):
    stored = tuple(TensorInfo(name, dtype, shape, 1, "f") for name, dtype, shape in tensors)
    return Checkpoint("model", None, {"model_type": "mixtral", **config, "quantization_config": settings}, stored, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "secret"}, "is quantised as secret, which cannot be run"),
        ({"quant_method": "nvfp4"}, "is quantised as nvfp4, which cannot be run"),
        ({"bits": 4}, "is quantised as unnamed"),
        (compressed("marlin-24", group(**INT)), "marlin-24 of compressed-tensors"),
        (compressed("mixed-precision", {**group(**FLOAT), "format": "mxfp6-pack-quantized"}), "mxfp6-pack-quantized"),
        (compressed("dense", sparsity_config={"format": "sparse-24-bitmask"}), "sparse sparse-24-bitmask"),
        (compressed("pack-quantized", transform_config={"config_groups": {"u": {}}}), "rotated weights"),
    ],
)
@pytest.mark.parametrize("engine", ["auto", "stream", "resident"])
def test_refused_formats(settings, message, engine):
    with pytest.raises(MoetoolError, match=message):
        pick_engine(engine, MIXTRAL, checkpoint_of(settings))


@pytest.mark.parametrize("method", quantized.PACKAGES)
def test_formats_that_need_a_package(method, monkeypatch):
    settings = {"load_in_4bit": True} if method == "bitsandbytes" else {"quant_method": method}
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(MoetoolError, match=f"as {method}, which needs") as caught:
        pick_engine("auto", MIXTRAL, checkpoint_of(settings))
    assert "pip install" in caught.value.hint
    monkeypatch.setattr(quantized, "find_spec", lambda name: name)
    assert pick_engine("auto", MIXTRAL, checkpoint_of(settings)) == "resident"
    with pytest.raises(MoetoolError, match="cannot be streamed: its weights run only as they are quantised"):
        pick_engine("stream", MIXTRAL, checkpoint_of(settings))


def test_the_command_line_says_so_and_exits_with_2(tmp_path, monkeypatch, capsys):
    save_checkpoint(tmp_path / "model")
    edit_config(tmp_path / "model", quantization_config={"quant_method": "awq", "bits": 4})
    texts = [part for argument in write_corpus(tmp_path / "corpus") for part in ("--text", argument)]
    monkeypatch.setattr(sys, "argv", ["moetool", "route-stats", str(tmp_path / "model"), *texts])
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "is quantised as awq, which needs gptqmodel" in err
    assert "pip install gptqmodel" in err


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        (
            compressed("pack-quantized", group(**{**INT, "num_bits": 3})),
            [("a.weight_packed", "I32", (8, 3))],
            "of 3 bits",
        ),
        (compressed("pack-quantized", group(**INT, strategy="odd")), [("a.weight_packed", "I32", (8, 4))], "any block"),
        (compressed("float-quantized", group(**FLOAT)), [("a.weight", "BF16", (8, 4))], "BF16 with a.weight_scale"),
        (compressed("nvfp4-pack-quantized", group(**NVFP4)), [("a.weight_packed", "I8", (8, 4))], "no known format"),
        ({"quant_method": "fp8"}, [("a.weight", "I8", (8, 32))], "I8 with a.scale as F32"),
        ({"quant_method": "fp8"}, [("a.weight", "F8_E4M3", (200,))], "does not fit"),
        ({"quant_method": "fp8"}, [("a.weight", "F8_E4M3FNUZ", (200,))], "does not fit"),
        ({"quant_method": "fp8"}, [("b", "BF16", (8, 8)), ("b_scale_inv", "F32", (1, 1))], "BF16 with b_scale_inv"),
        ({"quant_method": "modelopt"}, [("a.weight", "BF16", (8, 4))], "BF16 with a.weight_scale"),
        ({"quant_method": "mxfp4"}, [("a.weight", "F8_E4M3", (8, 4))], "which mxfp4 does not explain"),
        ({"quant_method": "modelopt"}, [("a.pre_quant_scale", "BF16", (8,))], "scales its activations"),
    ],
)
def test_tensors_that_the_config_does_not_explain(settings, tensors, message):
    scales = [("a.weight_scale", "F32", (8, 1)), ("a.scale", "F32", (8, 1)), ("a.weight_shape", "I64", (2,))]
    with pytest.raises(MoetoolError, match=message):
        quantized.stored_weights(checkpoint_of(settings, *tensors, *scales))


def test_a_module_that_two_groups_could_mean():
    one, other = group(**FLOAT, strategy="tensor"), group(**FLOAT, strategy="channel")
    tensors = [("a.weight", "F8_E4M3", (1, 8)), ("a.weight_scale", "F32", (1, 1))]
    with pytest.raises(MoetoolError, match="in more than one way"):
        quantized.stored_weights(checkpoint_of(compressed("float-quantized", one, other), *tensors))
    named = group(["re:^a$"], **FLOAT, strategy="channel")
    found = quantized.stored_weights(checkpoint_of(compressed("float-quantized", one, named), *tensors))
    assert found["a.weight"].layout.block == (1, 0)


def test_settings_of_the_text_decoder_count():
    nested = Checkpoint("m", None, {"text_config": {"quantization_config": {"quant_method": "fp8"}}}, (), None)
    assert quantized.quantization_of(nested) == {"quant_method": "fp8"}
    old = Checkpoint("m", None, {"compression_config": {"quant_method": "compressed-tensors"}}, (), None)
    assert pick_engine("auto", MIXTRAL, old) == "stream"


def test_dtype_of_packed_weights():
    fp8 = [("a.weight", "F8_E4M3", (8, 4))]
    assert compute_dtype(checkpoint_of({}, *fp8), "auto") == "bfloat16"
    assert compute_dtype(checkpoint_of({}, *fp8, torch_dtype="float16"), "auto") == "float16"
    assert compute_dtype(checkpoint_of({}, *fp8, text_config={"dtype": "float32"}), "auto") == "float32"
    assert compute_dtype(checkpoint_of({}, *fp8, dtype="float64"), "auto") == "bfloat16"
    assert compute_dtype(checkpoint_of({}, ("a.weight_packed", "I32", (8, 4))), "auto") == "bfloat16"
    assert compute_dtype(checkpoint_of({}, ("a", "F32", (8, 4))), "auto") == "float32"


def test_packed_numbers_in_a_module_of_the_model_are_an_error():
    model = nn.ModuleDict({"experts": nn.Linear(4, 4)})
    quantized.check_unpacked(model)
    model["experts"].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(MoetoolError, match=r"experts\.weight as int8, without the scales"):
        quantized.check_unpacked(model)


class Notes(SilentProgress):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def test_quantize_is_refused_where_it_cannot_be(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "model")
    checkpoint = locate(str(tmp_path / "model"))
    with pytest.raises(MoetoolError, match="--quantize 4bit: model is quantised already, as fp8"):
        pick_engine("auto", MIXTRAL, checkpoint_of({"quant_method": "fp8"}), "4bit")
    monkeypatch.setattr("transformers.utils.import_utils.is_bitsandbytes_available", lambda: True)
    assert pick_engine("auto", MIXTRAL, checkpoint, "8bit") == "resident"
    with pytest.raises(MoetoolError, match=r"--engine stream: .* --quantize 8bit keeps"):
        pick_engine("stream", MIXTRAL, checkpoint, "8bit")
    monkeypatch.setattr("transformers.utils.import_utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(MoetoolError, match="--quantize 8bit needs bitsandbytes") as caught:
        pick_engine("auto", MIXTRAL, checkpoint, "8bit")
    assert caught.value.hint == "pip install 'moetool[quantize]'"


class Layers(nn.ModuleDict):
    """A router, a head and linear layers of some widths."""

    def __init__(self, **widths):
        super().__init__({name: nn.Linear(width, 8) for name, width in {"router": 64, "head": 64, **widths}.items()})

    def get_output_embeddings(self):
        return self["head"]


@pytest.mark.parametrize(
    ("quantize", "device", "kept"),
    [
        ("4bit", "cpu", ["router", "head", "odd"]),
        ("4bit", "cuda", ["router", "head"]),
        ("8bit", "cpu", ["router", "head"]),
    ],
)
def test_4_bits_on_a_cpu_take_whole_blocks_only(quantize, device, kept):
    pytest.importorskip("bitsandbytes")
    device = torch.device(device)
    model = Layers(even=128, odd=160)
    settings = quantized.bitsandbytes_settings(quantize, "bfloat16", model, [model["router"]], device)
    assert settings.llm_int8_skip_modules == kept
    odd = Layers(odd=160)
    if kept[-1] == "odd":
        with pytest.raises(MoetoolError, match="can take no linear layer of this model: on a CPU"):
            quantized.bitsandbytes_settings(quantize, "bfloat16", odd, [odd["router"]], device)


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantize_runs_and_is_recorded(quantize, tmp_path):
    pytest.importorskip("bitsandbytes")
    save_checkpoint(
        tmp_path / "model", "qwen3_moe", dtype=torch.bfloat16, hidden_size=64, head_dim=32, moe_intermediate_size=32
    )
    corpus = write_corpus(tmp_path / "corpus")
    exact = run(tmp_path / "model", corpus, "resident")
    assert "quantize" not in exact.settings
    progress = Notes()
    options = CaptureOptions(device="cpu", batch_tokens=160, quantize=quantize)
    trace = capture(locate(str(tmp_path / "model")), read_corpus(corpus), options, progress=progress)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    linear = sum(t.numel() for name, t in stored.items() if "self_attn" in name and name.endswith("proj.weight"))
    share = linear / sum(t.numel() for t in stored.values())
    assert [note for note in progress.notes if f"{100 * share:.1f} % of the parameters are quantised" in note]
    assert trace.settings == {**exact.settings, "quantize": quantize, "quantized_share": round(share, 4)}
    assert made_with(trace)["quantized_share"] == round(share, 4)
    same = [(one.chosen == other.chosen).mean() for one, other in zip(exact.layers, trace.layers, strict=True)]
    assert 0.5 < np.mean(same) < 1


def test_quantize_on_the_command_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("bitsandbytes")
    save_checkpoint(tmp_path / "model", "mixtral", hidden_size=64, intermediate_size=64)
    texts = [part for argument in write_corpus(tmp_path / "corpus") for part in ("--text", argument)]
    arguments = ["capture", str(tmp_path / "model"), *texts, "--out", str(tmp_path / "trace"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["moetool", *arguments, "--quantize", "4bit", "--json"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code in (0, None)
    assert json.loads(capsys.readouterr().out)["options"]["quantize"] == "4bit"
    assert json.loads((tmp_path / "trace" / "trace.json").read_text())["settings"]["quantize"] == "4bit"


def save_bitsandbytes(folder, **kwargs):
    """A checkpoint that bitsandbytes has quantised: linear layers, beside plain experts."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    sizes = {"hidden_size": 64, "head_dim": 32, "moe_intermediate_size": 32}
    save_checkpoint(folder, "qwen3_moe", dtype=torch.bfloat16, **sizes)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map={"": "cpu"}, quantization_config=BitsAndBytesConfig(**kwargs)
    )
    model.save_pretrained(folder)


@pytest.mark.parametrize("kwargs", [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}])
def test_bitsandbytes_checkpoints_run_in_transformers(kwargs, tmp_path):
    pytest.importorskip("bitsandbytes")
    save_bitsandbytes(tmp_path / "model", **kwargs)
    trace = run(tmp_path / "model", write_corpus(tmp_path / "corpus"), "auto")
    assert trace.settings["engine"] == "resident"
    assert len(np.unique(trace.layers[0].chosen)) > 2


@pytest.mark.parametrize(
    ("kwargs", "dtype", "message"),
    [
        ({"load_in_8bit": True}, torch.int8, "as int8, without the scales"),
        ({"load_in_4bit": True}, torch.uint8, "shape|does not load|as uint8, without the scales"),
    ],
)
def test_experts_that_transformers_would_take_as_they_are(kwargs, dtype, message, tmp_path):
    """As transformers 4 saved them: every expert is a linear layer, and quantised."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "model"
    save_bitsandbytes(folder, **kwargs)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if ".experts." in name]:
        weight = tensors.pop(name)
        packed = weight.flatten()[: weight.numel() // (2 if dtype == torch.uint8 else 1)]
        tensors[name] = packed.reshape(-1, 1 if dtype == torch.uint8 else weight.shape[-1]).to(dtype).contiguous()
        tensors[name.replace(".weight", ".SCB")] = torch.ones(weight.shape[0])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MoetoolError, match=message):
        run(folder, write_corpus(tmp_path / "corpus"), "auto")


def test_experts_that_transformers_does_not_find(tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "model"
    save_bitsandbytes(folder, load_in_8bit=True)
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("_proj.weight", "_proj.qweight") if "experts" in name else name: t for name, t in tensors.items()
    }
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MoetoolError, match=r"transformers finds no weights for .*experts.* nor for 5 more"):
        run(folder, write_corpus(tmp_path / "corpus"), "auto")
