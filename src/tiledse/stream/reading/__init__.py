"""ONNX files as modules of torch, so that their row graphs are built as any other's."""

from .module import read_onnx

__all__ = ["read_onnx"]
