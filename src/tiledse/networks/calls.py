"""What the calls in a traced forward are: products, means, reshapes, functions of one channel vector, ..."""

from __future__ import annotations

import operator

import torch
from torch import nn
from torch.nn import functional as F

PRODUCTS = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_"}
MEANS = {torch.mean, "mean", F.adaptive_avg_pool2d, F.avg_pool2d, nn.AdaptiveAvgPool2d, nn.AvgPool2d}
MAXIMA = {torch.amax, torch.max, "amax", "max", F.adaptive_max_pool2d, F.max_pool2d}
MAXIMA |= {nn.AdaptiveMaxPool2d, nn.MaxPool2d}
VIEWS = {"view", "reshape", "flatten", torch.flatten, torch.reshape, "contiguous", nn.Flatten, nn.Identity}
RESHAPES = VIEWS | {
    "unsqueeze",
    "squeeze",
    torch.unsqueeze,
    torch.squeeze,
    "view_as",
    "expand_as",
    "expand",
}
RESHAPES |= {"permute", "transpose", torch.permute, torch.transpose, nn.Unflatten}
SHAPES = {"size", "dim", getattr, operator.getitem}
ARITHMETIC = {operator.add, operator.sub, operator.truediv, torch.add, torch.sub, torch.div, "add", "div"}
ARITHMETIC |= PRODUCTS | {operator.iadd, operator.itruediv, "add_", "div_", "clamp", "clamp_", torch.clamp}
FUNCTIONS = {torch.relu, torch.sigmoid, torch.tanh, "relu", "relu_", "sigmoid", "sigmoid_", "tanh"}
FUNCTIONS |= {
    F.relu,
    F.relu6,
    F.silu,
    F.hardswish,
    F.hardsigmoid,
    F.sigmoid,
    F.gelu,
    F.leaky_relu,
    F.dropout,
}
FUNCTIONS |= {F.softplus, F.mish, F.elu, F.hardtanh, F.tanh, F.layer_norm, F.batch_norm}
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.Dropout, nn.Dropout2d, nn.Identity)
