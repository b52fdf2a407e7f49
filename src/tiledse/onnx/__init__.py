"""ONNX networks: find their SE blocks, give them tiles, verify the result in ONNX Runtime."""

from .converter import convert, divisor_plan
from .export import export
from .finder import find
from .hailo import alls
from .model import OnnxModel, load, save
from .runner import OnnxModule, module, session
from .verification import Verification, operators, verify

__all__ = ["OnnxModel", "OnnxModule", "Verification", "alls", "convert", "divisor_plan", "export", "find", "load", "module", "operators", "save", "session", "verify"]
