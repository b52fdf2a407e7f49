"""Plans, weights, checkpoints, ONNX networks and stream states."""

from __future__ import annotations

import io
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torchvision.ops import SqueezeExcitation

import onnx
import tiledse as ts
from tests.onnx.test_fuzz import base, mutate
from tiledse.networks.saving import save
from tiledse.networks.weights import load_weights
from tiledse.plan import Plan
from tiledse.report.blocks import blocks_table, near_miss_lines
from tiledse.report.terminal import Shown
from tiledse.report.text import cost_table

from .formats import Format
from .mutate import NAMES, Dice, change_bytes, change_json, change_safetensors, change_zip

SIZE = (3, 16, 12)


class Net(nn.Module):
    """Two blocks between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.se = SqueezeExcitation(8, 4)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.se2 = SqueezeExcitation(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.se2(self.conv(self.se(self.stem(x))))


def network() -> nn.Module:
    """The network, with the same weights each time."""
    torch.manual_seed(0)
    return Net().eval()


def planned() -> Plan:
    """A plan with a correction, which carries numbers."""
    from tiledse.networks.network import TorchNetwork

    network_ = TorchNetwork(network(), SIZE)
    plan = network_.plan.with_tile("3xW:running", "se").with_tile("2xW", "se2")
    images = torch.randn(40, *SIZE, generator=torch.Generator().manual_seed(0))
    return ts.calibrate(network_, plan, lambda: iter([images]))


def show(plan: Plan) -> None:
    """Print a plan as the verbs do."""
    console = Console(highlight=False, markup=False, emoji=False, width=160)
    for part in (blocks_table(plan, "m"), *near_miss_lines(plan), cost_table(ts.cost(plan))):
        console.print(Shown(part))


class Plans(Format):
    name, file = "plan.json", "plan.json"

    @cached_property
    def _sound(self) -> bytes:
        return planned().dumps().encode()

    def sound(self, dice: Dice) -> bytes:
        return self._sound

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_json(data, dice)

    def read(self, path: Path) -> Any:
        plan = Plan.load(path)
        show(plan)
        assert Plan.from_dict(json.loads(plan.dumps())) == plan
        return plan.to_dict(), ts.cost(plan).to_dict(), plan.stages


class PlansInWeights(Plans):
    name, file = "plan.safetensors", "net.safetensors"

    @cached_property
    def _sound(self) -> bytes:
        plan = planned()
        save(ts.convert(network(), plan.uncalibrated), plan.uncalibrated, self.path, "m")
        return self.path.read_bytes()

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_safetensors(data, dice, "tiledse.plan")


class Weights(Format):
    name, file = "weights.safetensors", "net.safetensors"

    def sound(self, dice: Dice) -> bytes:
        from safetensors.torch import save as dumped

        return dumped(network().state_dict(), {"about": "a test"})

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_safetensors(data, dice)

    def read(self, path: Path) -> Any:
        model = network()
        load_weights(model, path)
        return model.state_dict()


class Checkpoints(Weights):
    name, file = "weights.pt", "net.pt"

    def sound(self, dice: Dice) -> bytes:
        out = io.BytesIO()
        state = network().state_dict()
        torch.save(dice.choice((state, {"state_dict": state, "epoch": 3}, {"model": state})), out)
        return out.getvalue()

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_zip(data, dice)


class Onnx(Format):
    name, file = "network.onnx", "net.onnx"

    def sound(self, dice: Dice) -> bytes:
        return base(dice).SerializeToString()

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        if dice.random() < 0.3:
            return change_bytes(data, dice)
        proto = onnx.ModelProto.FromString(data)
        # The spellings of blocks first: that mutator reads weights, which the lies make unreadable.
        if dice.random() < 0.4:
            mutate(proto, dice)
        for _ in range(dice.randint(0, 2)):
            _lie(proto, dice)
        return proto.SerializeToString()

    def read(self, path: Path) -> Any:
        from tiledse.onnx import convert, find, load

        model = load(path)
        plan = find(model, (3, 10, 9))
        show(plan)
        if not len(plan):
            return None
        tiled = plan.with_tile("5xW")
        made = convert(model, tiled).to_proto()
        return tiled.to_dict(), [onnx.numpy_helper.to_array(w) for w in made.graph.initializer]


def _lie(proto: onnx.ModelProto, dice: Dice) -> None:
    """Names, sizes, types and places that say what is not so."""
    graph = proto.graph
    kind = dice.randrange(8)
    name = dice.choice([n for n in NAMES if "\ud800" not in n])
    node = dice.choice(graph.node)
    weight = dice.choice(graph.initializer) if graph.initializer else onnx.TensorProto()
    if kind == 0:
        node.name = name
    elif kind == 1:
        node.domain = name
        proto.opset_import.append(onnx.helper.make_opsetid(name, dice.choice((0, 1, 2**40))))
    elif kind == 2:
        node.op_type = name
    elif kind == 3:
        new, old = name, dice.choice([o for n in graph.node for o in n.output])
        for other in graph.node:
            other.input[:] = [new if v == old else v for v in other.input]
            other.output[:] = [new if v == old else v for v in other.output]
    elif kind == 4:
        dims = weight.dims
        dims[:] = dice.choice(
            ([], [0], [-1], [2**40], [2**62, 4], [1] * 100, [*dims, 1], dims[:-1], dims[::-1])
        )
    elif kind == 5:
        weight.data_type = dice.choice((0, 1, 2, 7, 8, 10, 11, 16, 17, 22, 99))
    elif kind == 6:
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (
            ("location", dice.choice(("../x", "/etc/passwd", "w.bin", name, "."))),
            ("offset", dice.choice(("0", "-1", "1e9", "9" * 400, name))),
            ("length", dice.choice(("0", "-1", "96", "9" * 400, name))),
        ):
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
    else:
        shape = graph.input[0].type.tensor_type.shape
        for dim in shape.dim:
            if dice.random() < 0.5:
                dim.dim_value = dice.choice((-1, 0, 1, 2**31, 2**40, 10))
            else:
                dim.dim_param = name


def _signed(data: bytes) -> bytes:
    """A state whose checksum is right for what it says now, so that the checks behind it are met."""
    from safetensors.torch import load as tensors_of
    from safetensors.torch import save as dumped

    from tiledse.stream.state import _digest

    try:
        tensors = tensors_of(data)
        if any(float(t.abs().max()) > 1e30 for t in tensors.values() if t.numel()):
            return data  # signed, that is the honest state of an image which overflows
        header = json.loads(
            json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["tiledse.stream"]
        )
        header["sha256"] = _digest(header, tensors)
        return dumped(tensors, {"tiledse.stream": json.dumps(header)})
    except Exception:  # damaged in a way that no checksum mends
        return data


class StreamStates(Format):
    name, file = "stream state", "state.safetensors"

    @cached_property
    def _plan(self) -> Plan:
        return ts.find(self._model, (3, 29, 19)).with_tile("2xW:running")

    @cached_property
    def _model(self) -> nn.Module:
        from tests.stream.networks import Small

        torch.manual_seed(0)
        return Small().eval()

    @cached_property
    def _stream(self) -> Any:
        return ts.stream(self._model, self._plan, rows=8)

    @cached_property
    def _image(self) -> torch.Tensor:
        return torch.randn(1, 3, 29, 19, generator=torch.Generator().manual_seed(1))

    @cached_property
    def _sound(self) -> bytes:
        self._stream.push(self._image[:, :, :10])
        self._stream.save(self.path)
        return self.path.read_bytes()

    def sound(self, dice: Dice) -> bytes:
        return self._sound

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        changed = change_safetensors(data, dice, "tiledse.stream")
        return changed if dice.random() < 0.3 else _signed(changed)

    def read(self, path: Path) -> Any:
        self._stream.load(path)
        # A state that was taken must be one to go on with: to the end of the image, or of its rows.
        seen = self._stream.seen
        out = self._stream.push(self._image[:, :, seen:])
        assert 0 <= seen <= 29
        return out
