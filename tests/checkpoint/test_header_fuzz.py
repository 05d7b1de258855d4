"""Damaged files: each is refused with a MoetoolError, or adds up and is what the safetensors library finds too.

``python -m tests.benchmarks.fuzz_headers`` does the same to any number of files, and measures.
"""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.checkpoint.headers import read_header
from moetool.checkpoint.locate import locate
from moetool.errors import MoetoolError
from tests.mutations import CONFIG, DAMAGES, SOURCES, VALID, Folder, check_accepted, refused_by_safetensors

LAXER = {
    "unknown variant": "a type that safetensors does not know: its bytes are counted all the same",
    "number out of range": "an infinite float in a key that nobody reads",
    "invalid type: floating point ": "minus zero",
}
"""Why safetensors refuses files that are accepted here."""
STRICTER = ("occurs twice", "is not a JSON object", "is not an object of texts", "its shape is")
"""Of files that safetensors takes, what is refused: tensors twice, white space first, null metadata, 64-bit extents."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "case.safetensors"


def judge(path, content):
    """Whether a file is accepted, held against its own bytes and against safetensors."""
    path.write_bytes(content)
    try:
        tensors = read_header(path)
    except MoetoolError as error:
        refusal = error.message
    else:
        check_accepted(content, tensors)
        reason = refused_by_safetensors(content, tensors)
        assert reason is None or any(reason.endswith(known) for known in LAXER)
        return True
    refusal.encode()
    assert refused_by_safetensors(content) or any(reason in refusal for reason in STRICTER)
    return False


@pytest.mark.parametrize("kind", VALID)
def test_whole_files_are_accepted(path, kind):
    assert judge(path, VALID[kind])


@pytest.mark.parametrize("damage", dict.fromkeys(DAMAGES), ids=lambda damage: damage.__name__)
def test_damaged_files(path, damage):
    random = Random(damage.__name__)
    accepted = [judge(path, damage(random, random.choice(SOURCES))) for _ in range(400)]
    assert not all(accepted)


@given(st.randoms(use_true_random=False), st.sampled_from(SOURCES), st.sampled_from(DAMAGES))
def test_damaged_files_of_hypothesis(path, random, content, damage):
    judge(path, damage(random, content))


def test_damaged_folders(tmp_path):
    folder, random, accepted = Folder(tmp_path / "model"), Random(0), 0
    files = [file for file in folder.valid if file != CONFIG]
    for _ in range(400):
        folder.damage(random, random.choice(files))
        try:
            checkpoint = locate(str(folder.path))
        except MoetoolError as error:
            error.message.encode()
            continue
        accepted += 1
        assert sum(tensor.size_bytes for tensor in checkpoint.tensors) == folder.data_bytes()
    assert 0 < accepted < 400
