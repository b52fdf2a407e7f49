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

# Inputs that operators have at the least, of those that are looked into; each gives one tensor.
LEAST = {
    **dict.fromkeys((*ELEMENTWISE, *RESHAPES, *REPEATS), 1), **dict.fromkeys(DENSE, 2), "ADD": 2, "DIV": 2, "SUB": 2,
    "MUL": 2, "PRELU": 2, "MEAN": 2, "AVERAGE_POOL_2D": 1, "DEPTHWISE_CONV_2D": 2, "TRANSPOSE_CONV": 3, "CONV_3D": 2,
    "DENSIFY": 1, "SHAPE": 1,
}  # fmt: skip
# The options of those whose options are looked at.
OPTIONS = {
    "CONV_2D": "Conv2DOptionsT", "FULLY_CONNECTED": "FullyConnectedOptionsT", "AVERAGE_POOL_2D": "Pool2DOptionsT",
    "MUL": "MulOptionsT",
}  # fmt: skip


class Miss(Exception):
    """Why something that pools a map is no SE block."""
