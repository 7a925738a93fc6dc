"""What a backend for kernels contributes to the class that the torch backend emits."""

from __future__ import annotations

from optdsl.core.record import record


@record
class Native:
    """The source file of the kernels, and lines for the body of the Python class.

    `reason` says why there are no kernels; the other fields are then empty.
    """

    reason: str | None = None
    source: str = ""
    declarations: tuple[str, ...] = ()
    function: tuple[str, ...] = ()
