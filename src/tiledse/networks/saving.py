"""Save a converted network: its state dict as safetensors, with the plan in the file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ..documents import write_json
from ..errors import TiledSEError, first_line
from ..files import written_whole
from ..plan import METADATA_KEY, Plan


def save(model: nn.Module, plan: Plan, path: str | Path, name: str = "") -> None:
    """Write the weights, with the plan and the network's name in the metadata; whole or not at all.

    ``Plan.load`` reads the plan back from the file, ``convert`` applies it to the network that the weights are
    then loaded into; plain SE networks of the same make load them too, for the names are the same.

    Args:
        model: The network.
        plan: Its tiles.
        path: A file that ends in .safetensors.
        name: What the network is called, such as ``timm:regnety_002``.

    Raises:
        TiledSEError: another ending, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise TiledSEError(f"cannot write {path}: weights of a PyTorch network go to a .safetensors file")
    # Copies, since a safetensors file holds each name's own values and networks may share tensors.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    write_state(state, plan, path, name)


def write_state(state: dict[str, Tensor], plan: Plan, path: Path, name: str) -> None:
    """Write a state dict with the plan and the network's name in the metadata; whole or not at all.

    Raises:
        TiledSEError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {"format": "pt", METADATA_KEY: write_json(plan.to_dict()), "tiledse.model": name}
    with written_whole(path) as part:
        try:
            save_file(state, part, metadata)
        except SafetensorError as error:
            raise OSError(first_line(error)) from error
