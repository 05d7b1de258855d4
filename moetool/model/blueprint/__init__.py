"""Models counted from their configs alone, without torch."""

from moetool.model.blueprint.tensors import blueprint_tensors

__all__ = ["blueprint_tensors"]
