"""Recordings of SGLang enter, a Recording leaves.

``.pt``: a dump of the expert distribution recorder, or ``.json`` with its ``logical_count`` alone. Else ``.json`` or
``.jsonl``: responses of a server that returns routed experts, each with ``meta_info.routed_experts``: base64 of
little-endian int32 ``[tokens, layers, experts per token]``, a column per decoder layer. The last token of a response
was never routed; a response to a request with ``routed_experts_start_len`` lacks the first ones.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.imports.recording import ASK_EXPERTS_PER_TOKEN, Known, RecordedDocument, Recording
from moetool.capture.imports.vllm import RoutedSequence, join_sequences
from moetool.errors import MoetoolError


def read(path: Path, known: Known, note: Callable[[str], None]) -> Recording:
    """One file; MoetoolError names the response, or the pass of the dump, that is wrong."""
    if path.suffix == ".pt":
        from moetool.capture.imports.sglang_dump import read_dump

        return read_dump(path, known, note)
    if path.suffix not in (".json", ".jsonl"):
        raise MoetoolError(f"{path} is neither .pt nor .json nor .jsonl", "name a dump of SGLang, or saved responses")
    responses = list(_responses(path))
    if not responses:
        raise MoetoolError(f"{path} holds no response")
    if isinstance(responses[0][1], dict) and "logical_count" in responses[0][1]:
        from moetool.capture.imports.sglang_dump import read_counts

        return read_counts(path, responses[0][1]["logical_count"], known)
    layers, chosen_per_token = _shape(path, known)
    sequences = [_sequence(path, number, response, layers, chosen_per_token) for number, response in responses]
    return join_sequences(path, sequences, known, note)


def _shape(path: Path, known: Known) -> tuple[int, int]:
    """Decoder layers and experts per token, which responses do not tell."""
    facts = None if known.model is None else known.model.facts
    layers = known.decoder_layers or (facts.layers if facts else None)
    chosen_per_token = known.experts_per_token
    if facts and facts.moe_layers:
        chosen_per_token = known.experts_per_token_of(facts.moe_layers[0].layer)
    if layers is None:
        raise MoetoolError(
            f"{path} does not say how many layers there are", "give --decoder-layers N, or --model MODEL"
        )
    if chosen_per_token is None:
        raise MoetoolError(f"{path} does not say how many experts a token has", ASK_EXPERTS_PER_TOKEN)
    return layers, chosen_per_token


def _responses(path: Path) -> Iterator[tuple[int, Any]]:
    """Responses of a file, counted from 1: one a line, or a JSON object or list."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            if path.suffix == ".json":
                content = json.load(file)
                yield from enumerate(content if isinstance(content, list) else [content], 1)
                return
            for number, line in enumerate(file, 1):
                try:
                    if line.strip():
                        yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise MoetoolError(f"{path}: line {number} is no JSON: {error}") from None
    except OSError as error:
        raise MoetoolError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise MoetoolError(f"{path} is no JSON in UTF-8: {error}") from None


def _sequence(path: Path, number: int, response: Any, layers: int, chosen_per_token: int) -> RoutedSequence:
    what = f"{path}: response {number}"
    information = response.get("meta_info") if isinstance(response, dict) else None
    if not isinstance(information, dict) or not isinstance(information.get("routed_experts"), str):
        raise MoetoolError(
            f"{what} has no meta_info.routed_experts", "start the server with --enable-return-routed-experts"
        )
    chosen = _decode(what, information["routed_experts"], layers, chosen_per_token)
    prompt, generated = (_count(what, information, name) for name in ("prompt_tokens", "completion_tokens"))
    missing = 0
    if prompt is not None and generated is not None:
        missing = prompt + generated - 1 - len(chosen)
        if missing < -1:
            raise MoetoolError(f"{what} has routing of {len(chosen)} tokens, and {prompt} + {generated} tokens")
    first = max(missing, 0)
    if prompt is not None:
        prompt = min(max(prompt - first, 0), len(chosen))
    id = f"{path.stem}:{number}"
    return RoutedSequence(
        RecordedDocument(id, len(chosen), prompt), chosen, _token_ids(what, response, prompt, len(chosen))
    )


def _decode(what: str, text: str, layers: int, chosen_per_token: int) -> NDArray[np.int32]:
    """``[T, L, K]``"""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise MoetoolError(f"{what}: routed_experts is no base64: {error}", "it may be cut off") from None
    row = 4 * layers * chosen_per_token
    if not data or len(data) % row:
        raise MoetoolError(
            f"{what}: routed_experts has {len(data)} bytes, not 4 x {layers} layers x {chosen_per_token} experts",
            "it may be cut off, or be of another model",
        )
    return np.frombuffer(data, dtype="<i4").reshape(-1, layers, chosen_per_token)


def _count(what: str, information: dict[str, Any], name: str) -> int | None:
    value = information.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise MoetoolError(f"{what}: {name} is {value!r}, no number of tokens")
    return value


def _token_ids(what: str, response: dict[str, Any], prompt: int | None, tokens: int) -> NDArray[np.int32] | None:
    """``[T]`` the generated tokens at their places, 0 for those of the prompt; None where their places are unknown."""
    ids = response.get("output_ids")
    if ids is None or prompt is None:
        return None
    if not isinstance(ids, list) or not all(type(id) is int and 0 <= id < 2**31 for id in ids):
        raise MoetoolError(f"{what}: output_ids is no list of token ids")
    found = np.zeros(tokens, dtype=np.int32)
    ids = ids[: tokens - prompt]
    found[prompt : prompt + len(ids)] = ids
    return found
