"""The torch backend: one readable Python file per spec, a `torch.optim.Optimizer` with its own paths."""

from optdsl.backends.torch.emit import NAME, emit, python_names, supports

__all__ = ["NAME", "emit", "python_names", "supports"]
