"""How a state may be kept between steps: the formats, and which states are never negative."""

from __future__ import annotations

#: Formats by name, with bytes per number. Codes have a scale of 4 bytes for each block of BLOCK numbers beside them.
FORMATS: dict[str, float] = {
    "f32": 4.0,
    "bf16": 2.0,
    "f16": 2.0,
    "bf16_sr": 2.0,
    "q8": 1.0,
    "q8_linear": 1.0,
    "q8_sqrt": 1.0,
    "q4": 0.5,
    "q4_linear": 0.5,
}
#: The format that rounds at random, for which an optimizer has a seed.
AT_RANDOM = "bf16_sr"
#: Numbers that share a scale, and the least of them that are worth codes: smaller tensors are kept in float32.
BLOCK = 256
LEAST = 4096


def is_code(name: str) -> bool:
    """Whether a format keeps codes with scales."""
    return name.startswith("q")
