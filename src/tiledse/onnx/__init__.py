"""ONNX networks: find their SE blocks, give them tiles, verify the result in ONNX Runtime."""

from .finder import find
from .model import OnnxModel, load, save
from .runner import OnnxModule, module, session

__all__ = ["OnnxModel", "OnnxModule", "find", "load", "module", "save", "session"]
