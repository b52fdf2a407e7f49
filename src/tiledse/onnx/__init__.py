"""ONNX networks: find their SE blocks, give them tiles, verify the result in ONNX Runtime."""

from .comparing import relative
from .converter import Converted, convert, convert_verified, divisor_plan
from .export import export, export_se, transfer
from .finder import find, weights_of
from .hailo import alls
from .model import OnnxModel, load, save
from .runner import OnnxModule, module, session
from .verification import Verification, operators, verify

__all__ = [
    "Converted", "OnnxModel", "OnnxModule", "Verification", "alls", "convert", "convert_verified", "divisor_plan",
    "export", "export_se", "find", "load", "module", "operators", "relative", "save", "session", "transfer", "verify",
    "weights_of",
]  # fmt: skip
