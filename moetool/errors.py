"""The one exception that the command line turns into a message, a hint and exit code 2."""

from __future__ import annotations


class MoetoolError(Exception):
    """What the user can mend: bad usage, model, corpus, trace or network.

    ``message`` says what happened and restates the input; ``hint`` names the next thing to try.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
