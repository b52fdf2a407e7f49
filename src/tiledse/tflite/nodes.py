"""Which operators an excitation may be made of, and the reason why something is no block."""

from __future__ import annotations

# They work on each number alone, whatever the shape.
ELEMENTWISE = {
    "ABS", "ADD", "CAST", "DEQUANTIZE", "DIV", "ELU", "EXP", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOG", "LOGISTIC",
    "MAXIMUM", "MINIMUM", "MUL", "NEG", "POW", "PRELU", "QUANTIZE", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1",
    "RSQRT", "SQRT", "SQUARE", "SUB", "TANH",
}  # fmt: skip
# They hand on the values of their first input in another shape.
RESHAPES = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS"}
DENSE = {"CONV_2D", "FULLY_CONNECTED"}
# What repeats gates over their tiles, as ``emit.py`` writes it.
REPEATS = {"RESHAPE", "CONCATENATION", "SLICE"}


class Miss(Exception):
    """Why something that pools a map is no SE block."""
