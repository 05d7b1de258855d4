"""GGUF files: what the gguf library writes is read exactly, split or whole."""

import sys

import gguf
import numpy as np
import pytest

import moetool.checkpoint
from moetool import cli
from moetool.checkpoint.dtypes import BITS, BLOCKS, KNOWN, bits_per_element
from moetool.checkpoint.gguf import read_gguf
from moetool.checkpoint.locate import locate
from moetool.checkpoint.types import Checkpoint
from moetool.errors import MoetoolError
from tests.stored import MIXTRAL, mixtral_tensors, write_checkpoint
from tests.stored_gguf import MIXTRAL_METADATA, mixtral_gguf, size_of, write_gguf, write_mixtral

TENSORS = mixtral_gguf()


def summary(checkpoint: Checkpoint):
    return {tensor.name: (tensor.dtype, list(tensor.shape), tensor.size_bytes) for tensor in checkpoint.tensors}


EXPECTED = {name: (kind, shape, size_of(kind, shape)) for name, (kind, shape) in TENSORS.items()}

# Types ---------------------------------------------------------------------------------------------------------------


def test_blocks_are_those_of_the_library():
    table = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {kind: BLOCKS.get(kind, (1, BITS.get(kind, 0) // 8)) for kind in table} == table
    assert table.keys() >= BLOCKS.keys()
    assert table.keys() <= KNOWN
    assert not BLOCKS.keys() & BITS.keys()


def test_bits_may_be_fractional():
    assert [bits_per_element(kind) for kind in ("Q4_K", "Q6_K", "MXFP4", "BF16", "X9")] == [4.5, 6.5625, 4.25, 16, None]


# Valid files ---------------------------------------------------------------------------------------------------------


def test_reads_what_gguf_writes(tmp_path):
    arrays = {
        "token_embd.weight": np.zeros((5, 32), np.float32),
        "half": np.ones((2, 3, 4), np.float16),
        "whole": np.zeros(7, np.int8),
        "wide": np.zeros((1, 2), np.int64),
    }
    quantized = {"Q8_0": (4, 64), "Q4_0": (2, 3, 32), "Q4_K": (2, 512), "MXFP4": (3, 5, 64), "IQ1_S": (256,)}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_token_list([f"token {number}" for number in range(5)])
    writer.add_token_scores([0.5, float("nan"), 1.0, 2.0, 3.0])
    writer.add_custom_alignment(64)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    for kind, shape in quantized.items():
        packed = np.zeros(gguf.quant_shape_to_byte_shape(shape, gguf.GGMLQuantizationType[kind]), np.uint8)
        writer.add_tensor(kind, packed, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = read_gguf(tmp_path / "m.gguf", "name")
    plain = {
        name: (kind, list(array.shape), array.nbytes)
        for (name, array), kind in zip(arrays.items(), ("F32", "F16", "I8", "I64"), strict=True)
    }
    assert summary(checkpoint) == plain | {
        "Q8_0": ("Q8_0", [4, 64], 4 * 2 * 34),
        "Q4_0": ("Q4_0", [2, 3, 32], 6 * 18),
        "Q4_K": ("Q4_K", [2, 512], 4 * 144),
        "MXFP4": ("MXFP4", [3, 5, 64], 30 * 17),
        "IQ1_S": ("IQ1_S", [256], 50),
    }
    assert (checkpoint.name, checkpoint.revision, checkpoint.folder) == ("name", None, tmp_path)
    assert {tensor.file for tensor in checkpoint.tensors} == {"m.gguf"}
    assert checkpoint.config["vocab_size"] == 5


def test_every_type_of_the_library(tmp_path):
    tensors = {kind.name: (kind.name, [2, 256]) for kind in gguf.GGML_QUANT_SIZES}
    found = summary(read_gguf(write_mixtral(tmp_path / "m.gguf", TENSORS | tensors), "m"))
    assert {name: found[name][2] for name in tensors} == {name: size_of(name, [2, 256]) for name in tensors}


def test_by_file_and_by_folder(tmp_path):
    path = write_mixtral(tmp_path / "model-Q4_K_M.gguf")
    (tmp_path / "README.md").write_text("")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # the original's, which publishers put beside it
    by_file, by_folder = locate(str(path)), locate(str(tmp_path))
    assert summary(by_file) == summary(by_folder) == EXPECTED
    assert (by_file.config, by_file.folder) == (by_folder.config, by_folder.folder)
    assert locate(str(path), weights="none").tensors == ()
    assert locate(str(path), weights="none").config == by_file.config


def test_snapshot_of_the_cache(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    write_mixtral(tmp_path / "models--org--name" / "snapshots" / commit / "m.gguf")
    checkpoint = locate(str(tmp_path / "models--org--name"))
    assert (checkpoint.revision, summary(checkpoint)) == (commit, EXPECTED)


def test_safetensors_come_first(tmp_path):
    write_checkpoint(tmp_path, MIXTRAL, mixtral_tensors())
    write_mixtral(tmp_path / "m.gguf")
    assert locate(str(tmp_path)).config == MIXTRAL


def write_split(folder):
    """A model that the gguf library splits into files of six tensors."""
    writer = gguf.GGUFWriter(folder / "name.gguf", "llama", split_max_tensors=6)
    for key, value in MIXTRAL_METADATA.items():
        writer.add_uint32(f"llama.{key}", value)
    for name, (_, shape) in TENSORS.items():
        writer.add_tensor(name, np.zeros(shape, np.float16 if len(shape) > 1 and "inp" not in name else np.float32))
    writer.write_header_to_file(folder / "name.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.iterdir())


def test_any_part_stands_for_all(tmp_path):
    files = write_split(tmp_path)
    assert [file.name for file in files] == [f"name-{i:05d}-of-00004.gguf" for i in range(1, 5)]
    for model in (*files, tmp_path):
        checkpoint = locate(str(model))
        assert summary(checkpoint) == EXPECTED
        assert {tensor.file for tensor in checkpoint.tensors} == {file.name for file in files}
        assert checkpoint.config["num_hidden_layers"] == 2


def test_parts_that_are_missing_or_mixed_up(tmp_path):
    files = write_split(tmp_path)
    moved = files[2].rename(tmp_path / "away")
    for model in (files[0], tmp_path):
        with pytest.raises(MoetoolError, match=r"name-00003-of-00004\.gguf is missing, one of 4 parts"):
            locate(str(model))
    moved.rename(files[2])
    files[3].write_bytes(files[2].read_bytes())
    with pytest.raises(MoetoolError, match=r"is in name-00003-of-00004\.gguf and in name-00004-of-00004\.gguf"):
        locate(str(tmp_path))
    write_gguf(files[3], "llama", {}, {"more": ("F32", [1])})
    with pytest.raises(MoetoolError, match="its parts hold 23 tensors, they hold 19"):
        locate(str(tmp_path))
    alone = files[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(MoetoolError, match="one of 4 parts, 1 are there") as caught:
        locate(str(alone))
    assert "00001-of-00003" in str(caught.value.hint)
    strange = alone.rename(tmp_path / "x-00005-of-00004.gguf")
    with pytest.raises(MoetoolError, match="part 5 of 4"):
        locate(str(strange))


def test_several_models_in_a_folder(tmp_path):
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "n-00001-of-00002.gguf", "n-00002-of-00002.gguf"):
        write_mixtral(tmp_path / name)
    with pytest.raises(MoetoolError, match=r"3 models: m-Q4_K_M\.gguf, m-Q8_0\.gguf, n in 2 parts") as caught:
        locate(str(tmp_path))
    assert caught.value.hint == "name one of the files"
    assert summary(locate(str(tmp_path / "m-Q8_0.gguf"))) == EXPECTED


def test_the_tower_beside_a_model_belongs_to_it(tmp_path):
    tower = {"v.blk.0.attn_q.weight": ("F16", [2, 2]), "mm.0.weight": ("F16", [2, 2])}
    write_mixtral(tmp_path / "name.gguf")
    write_gguf(tmp_path / "mmproj-name.gguf", "clip", {}, tower)
    checkpoint = locate(str(tmp_path))
    assert summary(checkpoint).keys() == TENSORS.keys() | tower.keys()
    assert checkpoint.config["model_type"] == "mixtral"
    write_gguf(tmp_path / "mmproj-name-f32.gguf", "clip", {}, tower)
    with pytest.raises(MoetoolError, match="holds 2 models: mmproj"):
        locate(str(tmp_path))


@pytest.mark.parametrize("command", ["route-stats", "specialize"])
def test_commands_that_run_the_model_refuse(tmp_path, command, monkeypatch, capsys):
    path = write_mixtral(tmp_path / "m.gguf")
    with pytest.raises(
        MoetoolError, match=r"m\.gguf holds GGUF weights, which moetool can count but not run"
    ) as caught:
        locate(str(path), weights="files")
    assert "safetensors" in str(caught.value.hint)
    texts = [word for name in "ab" for word in ("--text", f"{name}={tmp_path / name}.txt")]
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("some text")
    monkeypatch.setattr(sys, "argv", ["moetool", command, str(path), *texts])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "count but not run" in capsys.readouterr().err


def test_without_the_library(tmp_path, monkeypatch):
    path = write_mixtral(tmp_path / "m.gguf")
    monkeypatch.delitem(sys.modules, "moetool.checkpoint.gguf_reader", raising=False)
    monkeypatch.delattr(moetool.checkpoint, "gguf_reader", raising=False)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MoetoolError, match="takes the gguf library") as caught:
        locate(str(path))
    assert caught.value.hint == "pip install 'moetool[gguf]'"
