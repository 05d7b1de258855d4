"""What users call a model: every kind is found, every way to go wrong says what to do next."""

import json
import os
from pathlib import Path

import pytest

from moetool.checkpoint import folder as folder_module
from moetool.checkpoint import locate as locate_module
from moetool.checkpoint.locate import locate
from moetool.errors import MoetoolError
from tests.stored import MIXTRAL, mixtral_tensors, write_checkpoint, write_safetensors

INDEX = "model.safetensors.index.json"
TENSORS = mixtral_tensors()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def summary(model: str | Path, **options: object) -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors = locate(str(model), **options).tensors  # type: ignore[arg-type]
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}


EXPECTED = {name: (dtype, tuple(shape)) for name, (dtype, shape) in TENSORS.items()}


def write_cache(root: Path, shards: int = 1) -> Path:
    """A ``models--org--name`` folder as the hub's cache has it: snapshots of links to blobs."""
    cache = root / "models--org--name"
    real = write_checkpoint(root / "real", MIXTRAL, TENSORS, shards)
    snapshot = cache / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(real.iterdir())):
        path.rename(cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    return cache


@pytest.mark.parametrize("shards", [1, 3])
def test_folder(tmp_path, shards):
    checkpoint = locate(str(write_checkpoint(tmp_path, MIXTRAL, TENSORS, shards)))
    assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in checkpoint.tensors} == EXPECTED
    assert len({tensor.file for tensor in checkpoint.tensors}) == shards
    assert (checkpoint.config, checkpoint.revision, checkpoint.folder) == (MIXTRAL, None, tmp_path)


def test_several_files_without_an_index(tmp_path):
    write_checkpoint(tmp_path, MIXTRAL, TENSORS, shards=2)
    (tmp_path / INDEX).unlink()
    assert summary(tmp_path) == EXPECTED


def test_the_single_file_comes_before_an_index(tmp_path):
    write_checkpoint(tmp_path, MIXTRAL, {"stale": ("F32", [1])}, shards=2)
    write_safetensors(tmp_path / "model.safetensors", TENSORS)
    assert summary(tmp_path) == EXPECTED


@pytest.mark.parametrize("shards", [1, 2])
def test_snapshot_of_links_and_its_cache(tmp_path, shards):
    cache = write_cache(tmp_path, shards)
    snapshot = cache / "snapshots" / COMMIT
    assert summary(snapshot) == summary(cache) == summary(cache, revision=COMMIT) == EXPECTED
    assert locate(str(snapshot)).revision == locate(str(cache)).revision == COMMIT


@pytest.mark.parametrize("revision", ["v2", "../main", "/etc/passwd"])
def test_a_revision_that_the_cache_lacks(tmp_path, revision):
    with pytest.raises(MoetoolError, match="holds no revision") as caught:
        locate(str(write_cache(tmp_path)), revision)
    assert COMMIT in str(caught.value.hint)


def test_config_file_and_config_only(tmp_path):
    write_checkpoint(tmp_path, MIXTRAL, TENSORS)
    config = locate(str(tmp_path / "config.json"))
    assert (config.config, config.tensors, config.folder) == (MIXTRAL, (), None)
    assert locate(str(tmp_path), weights="none").tensors == ()
    (tmp_path / "model.safetensors").unlink()
    assert locate(str(tmp_path)).tensors == ()
    for model in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(MoetoolError, match="no weights"):
            locate(str(model), weights="files")


def test_demo_is_the_folder_in_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(locate_module, "DEMO", write_checkpoint(tmp_path, MIXTRAL, TENSORS))
    assert summary("demo") == EXPECTED
    assert locate("demo").name == "demo"
    with pytest.raises(MoetoolError, match="no revision"):
        locate("demo", "main")


def edit_index(folder: Path, **files: str | None) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= files
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file}
    (folder / INDEX).write_text(json.dumps(index))


SHARD, OTHER = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
EMBEDDING = "model.embed_tokens.weight"
WRONG = {
    "missing shard": (lambda f: (f / SHARD).unlink(), f"{SHARD} is missing"),
    "broken link": (lambda f: ((f / SHARD).unlink(), (f / SHARD).symlink_to("gone")), f"{SHARD} is missing"),
    "shard is a folder": (lambda f: ((f / SHARD).unlink(), (f / SHARD).mkdir()), f"{SHARD} is missing"),
    "index names more": (lambda f: edit_index(f, more=SHARD), "tensor 'more' is in .*, but it is not"),
    "index names less": (lambda f: edit_index(f, **{"lm_head.weight": None}), "'lm_head.weight' in .* is not in"),
    "index swaps": (lambda f: edit_index(f, **{EMBEDDING: OTHER}), f"'{EMBEDDING}' is in {OTHER}, but it is not"),
    "climbs out": (lambda f: edit_index(f, x="../m.safetensors"), "not inside its folder"),
    "climbs inside": (lambda f: edit_index(f, x="a/../../m.safetensors"), "not inside its folder"),
    "absolute": (lambda f: edit_index(f, x="/m.safetensors"), "not inside its folder"),
    "windows path": (lambda f: edit_index(f, x="..\\m.safetensors"), "not inside its folder"),
    "windows drive": (lambda f: edit_index(f, x="C:m.safetensors"), "not inside its folder"),
    "null byte": (lambda f: edit_index(f, x="m\0.safetensors"), "not inside its folder"),
    "pickled shard": (lambda f: edit_index(f, x="model.bin"), "model.bin is a pickle"),
    "other shard": (lambda f: edit_index(f, x="model.gguf"), "no safetensors file"),
    "index is no JSON": (lambda f: (f / INDEX).write_text("{"), "no valid JSON"),
    "index is a list": (lambda f: (f / INDEX).write_text("[]"), "no JSON object, but a list"),
    "index without map": (lambda f: (f / INDEX).write_text("{}"), "no weight_map"),
    "empty map": (lambda f: (f / INDEX).write_text('{"weight_map": {}}'), "no weight_map"),
    "endless name": (lambda f: edit_index(f, x="x" * 5000 + ".safetensors"), "cannot be read: File name too long"),
    "map of numbers": (lambda f: (f / INDEX).write_text('{"weight_map": {"a": 1}}'), "no weight_map"),
    "damaged shard": (lambda f: (f / SHARD).write_bytes(b"\0" * 100), "not a JSON object"),
    "cut shard": (lambda f: os.truncate(f / SHARD, (f / SHARD).stat().st_size - 1), "cut short"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{,}"), "config.json is no valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[1]"), "no JSON object, but a list"),
    "config nested too deep": (lambda f: (f / "config.json").write_text("[" * 100_000), "no valid JSON"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_folders(tmp_path, what):
    spoil, message = WRONG[what]
    write_checkpoint(tmp_path, MIXTRAL, TENSORS, shards=2)
    spoil(tmp_path)
    with pytest.raises(MoetoolError, match=message) as caught:
        locate(str(tmp_path))
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused(tmp_path, pickle):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / pickle).write_bytes(b"")
    with pytest.raises(MoetoolError, match=f"{pickle} is a pickle") as caught:
        locate(str(tmp_path))
    assert "convert it to safetensors" in str(caught.value.hint)
    with pytest.raises(MoetoolError, match="is a pickle"):
        locate(str(tmp_path / pickle))


@pytest.mark.parametrize("model", ["", "nowhere", "./no/where", "/no/where", "a/b/c", "org/na me", "x" * 5000, "a\0b"])
def test_nothing_there(model):
    with pytest.raises(MoetoolError) as caught:
        locate(model if model else "/no")
    assert "hub id" in str(caught.value.hint)


def test_empty_folder_and_strange_file(tmp_path):
    with pytest.raises(MoetoolError, match="is empty"):
        locate(str(tmp_path))
    path = write_safetensors(tmp_path / "model.safetensors", TENSORS)
    with pytest.raises(MoetoolError, match="no folder and no config"):
        locate(str(path))


def test_local_models_have_no_revision(tmp_path):
    with pytest.raises(MoetoolError, match="local: it has no revision 'v1'"):
        locate(str(write_checkpoint(tmp_path, MIXTRAL, TENSORS)), "v1")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("file", ["model.safetensors", "x.safetensors", INDEX, "config.json"])
def test_pipes_are_not_waited_for(tmp_path, file):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).unlink(missing_ok=True)
    os.mkfifo(tmp_path / file)
    model = tmp_path / file if file == "config.json" else tmp_path
    with pytest.raises(MoetoolError, match=f"{file} cannot be read: it is no regular file"):
        locate(str(model))


def test_a_config_of_endless_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "MAX_JSON_BYTES", 100)
    (tmp_path / "config.json").write_text('{"a": "' + "x" * 100 + '"}')
    with pytest.raises(MoetoolError, match="more than 100 bytes"):
        locate(str(tmp_path / "config.json"))


def test_weights_without_tensors(tmp_path):
    with pytest.raises(MoetoolError, match=r"model\.safetensors holds no tensors"):
        locate(str(write_checkpoint(tmp_path, MIXTRAL, {})))


def test_a_reference_that_is_no_text(tmp_path):
    cache = write_cache(tmp_path)
    (cache / "refs" / "main").write_bytes(b"\xff\xfe")
    assert summary(cache) == EXPECTED
