"""Models counted from their configs alone, without torch."""

from moetool.model.blueprint.architectures import ELSEWHERE
from moetool.model.blueprint.tensors import blueprint_tensors

__all__ = ["ELSEWHERE", "blueprint_tensors"]
