"""ONNX networks: find their SE blocks, give them tiles, verify the result in ONNX Runtime."""

from .converter import convert, divisor_plan
from .export import export, export_se, transfer
from .finder import find, weights_of
from .hailo import alls
from .model import OnnxModel, load, save
from .runner import OnnxModule, module, session
from .verification import Verification, operators, relative, verify

__all__ = [
    "OnnxModel", "OnnxModule", "Verification", "alls", "convert", "divisor_plan", "export", "export_se", "find", "load",
    "module", "operators", "relative", "save", "session", "transfer", "verify", "weights_of",
]  # fmt: skip
