"""Between text and tokens while a model writes: prompts and tokens enter, token ids and pieces of text leave."""

from __future__ import annotations

from typing import Any

from moetool.errors import MoetoolError

LONGEST_CHARACTER = 4
"""Bytes of a character in UTF-8, so tokens that it may be spread over."""
_UNFINISHED = "\ufffd"


def encode_prompt(tokenizer: Any, prompt: str, chat: str) -> list[int]:
    """Token ids of a prompt, in the tokenizer's chat template as one message of a user where ``chat`` says so.

    ``auto`` uses a template where there is one. MoetoolError for ``on`` without a template, for one that fails, and
    where there is no token.
    """
    template = getattr(tokenizer, "chat_template", None)
    if chat == "on" and not template:
        raise MoetoolError("--chat on: the tokenizer has no chat template", "leave --chat out, or --chat off")
    templated = bool(template) and chat != "off"
    text = _in_template(tokenizer, prompt) if templated else prompt
    ids: list[int] = tokenizer(text, add_special_tokens=not templated, verbose=False)["input_ids"]
    if not ids:
        raise MoetoolError("the prompt gives no token" + ", in the tokenizer's chat template" * templated)
    return ids


def _in_template(tokenizer: Any, prompt: str) -> str:
    try:
        message = [{"role": "user", "content": prompt}]
        return str(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
    except Exception as error:  # a template is a program of the checkpoint, and may raise anything
        detail = " ".join(str(error).split())[:200]
        raise MoetoolError(f"the tokenizer's chat template fails: {detail}", "try --chat off") from None


class TextStream:
    """Turns tokens into text one by one; joined, the pieces are what decoding all tokens at once would give.

    A token is decoded beside the one before it, as tokenizers drop or add a space at the beginning of a text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.before: list[int] = []
        self.pending: list[int] = []

    def push(self, token: int) -> str:
        """What the token adds; nothing while a character lacks bytes."""
        self.pending.append(token)
        before, text = self._decode(self.before), self._decode(self.before + self.pending)
        if text.endswith(_UNFINISHED) and len(self.pending) < LONGEST_CHARACTER:
            return ""
        self.before, self.pending = self.pending, []
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)) if ids else ""
