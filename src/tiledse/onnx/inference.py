"""Shapes of a graph by ONNX's own inference."""

from __future__ import annotations

import logging

import onnx_ir as ir

Shape = tuple[int | None, ...]


def forget(graph: ir.Model, outputs: bool = True) -> None:
    """Drop the shapes that the file states for values within, its outputs among them.

    Nothing obliges a file to state them rightly, and many state those of the size that it was exported at.
    """
    for node in graph.graph:
        for value in node.outputs:
            if outputs or not value.is_graph_output():
                value.shape = None


def infer(graph: ir.Model) -> tuple[dict[str, Shape], dict[str, ir.DataType]]:
    """Shapes and types of values by name, as far as they are inferred."""
    from onnx_ir.passes.common import ShapeInferencePass

    log = logging.getLogger("onnx_ir.passes.common.shape_inference")
    level = log.level
    log.setLevel(logging.ERROR)  # a shape that cannot be inferred is measured, or asked for; no warning
    try:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(graph)
    finally:
        log.setLevel(level)
    result: dict[str, Shape] = {}
    types: dict[str, ir.DataType] = {}
    for name, value in ir.convenience.create_value_mapping(graph.graph).items():
        if value.shape is not None:
            result[name] = tuple(d if isinstance(d, int) and d >= 0 else None for d in value.shape)
        if value.dtype is not None:
            types[name] = value.dtype
    return result, types
