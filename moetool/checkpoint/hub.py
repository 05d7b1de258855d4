"""Models of the Hugging Face hub: enters an id and a revision, leaves a Checkpoint; fetches only what was asked for.

``huggingface_hub`` does the talking, so HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured. It is imported
in the functions: that costs more than reading a local checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moetool.checkpoint.folder import (
    CONFIG,
    INDEX,
    SINGLE,
    Weights,
    check_index,
    read_folder,
    read_index,
    read_json,
    refuse_pickles,
    weight_files,
)
from moetool.checkpoint.headers import check_tensors, header_length, parse_header, refuse_duplicates
from moetool.checkpoint.types import Checkpoint, TensorInfo
from moetool.errors import MoetoolError

DOWNLOADED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
"""Weights, configs and tokenizers: never pickles, never code."""
FIRST_BYTES = 100_000
"""Of each file these are fetched at once: few headers are longer, so that one request does."""


def locate(repo: str, revision: str | None, weights: Weights) -> Checkpoint:
    """A model of the hub, from the local cache where that is complete.

    ``headers`` fetches config, index and the safetensors headers only (range requests); ``files`` the whole checkpoint.
    """
    with _explained(repo, revision):
        folder = cached_snapshot(repo, revision)
        if folder is not None and (weights == "none" or _is_complete(folder)):
            return read_folder(folder, repo, weights)
        if weights == "files":
            return read_folder(_download(repo, revision), repo, weights)
        return _read_remote(repo, revision, weights)


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """The snapshot folder of the local cache that holds the config of this revision; None where there is none."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, CONFIG, revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _is_complete(folder: Path) -> bool:
    """Whether a cached snapshot holds all its weights; the cache keeps what any program happened to download."""
    try:
        files, _ = weight_files(folder)
    except MoetoolError:
        return False
    return bool(files) and (files == [SINGLE] or (folder / INDEX).exists())


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi

    files = _list_files(repo, revision)
    if not any(file.endswith(".safetensors") for file in files):
        refuse_pickles(repo, files)
    return Path(
        HfApi().snapshot_download(repo, revision=revision, allow_patterns=list(DOWNLOADED), ignore_patterns="*/*")
    )


def _read_remote(repo: str, revision: str | None, weights: Weights) -> Checkpoint:
    from huggingface_hub import hf_hub_download

    files = _list_files(repo, revision)
    path = Path(hf_hub_download(repo, CONFIG, revision=revision))
    commit = path.parent.name
    tensors = () if weights == "none" else _remote_tensors(repo, commit, files)
    return Checkpoint(repo, commit, read_json(path), tensors, None)


def _list_files(repo: str, revision: str | None) -> set[str]:
    """Names of the files of a repository: one request, which fails at once where there is no network."""
    from huggingface_hub import HfApi

    return {sibling.rfilename for sibling in HfApi().model_info(repo, revision=revision).siblings or ()}


def _remote_tensors(repo: str, commit: str, files: set[str]) -> tuple[TensorInfo, ...]:
    """Tensors by the headers of the remote files, which are checked like those of local ones."""
    from concurrent.futures import ThreadPoolExecutor

    from huggingface_hub import hf_hub_download

    shards, expected = [SINGLE], None
    if SINGLE not in files and INDEX in files:
        expected = read_index(Path(hf_hub_download(repo, INDEX, revision=commit)))
        shards = sorted(set(expected.values()))
        missing = [shard for shard in shards if shard not in files]
        if missing:
            raise MoetoolError(f"{repo}: {missing[0]} is missing: {INDEX} names it", "choose another --revision")
    elif SINGLE not in files:
        shards = sorted(file for file in files if file.endswith(".safetensors") and "/" not in file)
        if not shards:
            refuse_pickles(repo, files)
    with ThreadPoolExecutor(8) as pool:
        tensors = tuple(
            t for shard in pool.map(lambda shard: _remote_header(repo, commit, shard), shards) for t in shard
        )
    refuse_duplicates(repo, tensors)
    if expected is not None:
        check_index(repo, expected, tensors)
    return tensors


def _remote_header(repo: str, commit: str, file: str) -> tuple[TensorInfo, ...]:
    from huggingface_hub import hf_hub_url

    where, url = f"{repo}/{file}", hf_hub_url(repo, file, revision=commit)
    start, size = _fetch_start(where, url, FIRST_BYTES)
    length = header_length(where, start[:8], size)
    if len(start) < 8 + length:
        start, size = _fetch_start(where, url, 8 + length)
    return check_tensors(where, file, parse_header(where, start[8 : 8 + length]), size - 8 - length)


def _fetch_start(where: str, url: str, count: int) -> tuple[bytes, int]:
    """The first ``count`` bytes of a remote file and its size; reading stops there, whatever a server sends."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]  # documented

    # without compression, so that the lengths that the server gives are those of the file
    headers = {**build_hf_headers(), "Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    start = bytearray()
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        for piece in response.iter_bytes():
            start += piece
            if len(start) >= count:
                break
        whole = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get(
            "Content-Length", ""
        )
    if not whole.isdecimal():
        raise MoetoolError(f"{where}: the hub does not say how large the file is", "download it, and name its folder")
    return bytes(start[:count]), int(whole)


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn what ``huggingface_hub`` raises into a MoetoolError with the next thing to try."""
    from huggingface_hub import errors

    at = f" at revision {revision!r}" if revision else ""
    try:
        yield
    except errors.GatedRepoError:
        raise MoetoolError(
            f"{repo} is gated: its authors must grant access first",
            f"ask for it on the model's page on the hub, then set HF_TOKEN (or: hf auth login); {_NO_WEIGHTS}",
        ) from None
    except errors.RepositoryNotFoundError:
        raise MoetoolError(
            f"{repo} is neither a local folder nor a model that the hub shows you",
            "check the spelling; for a private model set HF_TOKEN (or: hf auth login)",
        ) from None
    except errors.RevisionNotFoundError:
        raise MoetoolError(
            f"{repo} has no revision {revision!r}", "--revision takes a branch, a tag or a commit hash"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(repo, at, error) from None
    except errors.EntryNotFoundError as error:
        raise MoetoolError(
            f"{repo}{at} has no {CONFIG}", f"it is no transformers checkpoint ({_first_line(error)})"
        ) from None
    except (errors.SafetensorsParsingError, errors.NotASafetensorsRepoError) as error:
        raise MoetoolError(f"{repo}{at}: {_first_line(error)}") from None
    except (errors.HFValidationError, errors.HfHubHTTPError) as error:
        raise MoetoolError(f"{repo}{at}: {_first_line(error)}", "try again later, or name a local folder") from None
    except Exception as error:
        # httpx renamed itself between releases of huggingface_hub: its errors are told by their module
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            raise
        raise _unreachable(repo, at, error) from None


_NO_WEIGHTS = "or name a local config.json"


def _unreachable(repo: str, at: str, error: Exception) -> MoetoolError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return MoetoolError(
            f"{repo}{at} is not complete in the local cache, and HF_HUB_OFFLINE forbids fetching it",
            "unset HF_HUB_OFFLINE",
        )
    return MoetoolError(
        f"{repo}{at}: the hub ({constants.ENDPOINT}) cannot be reached: {_first_line(error)}",
        f"check the network, HF_ENDPOINT and proxies; a local folder needs no network, {_NO_WEIGHTS}",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
