"""Frames of videos as an image set: which belong together, in which order, and what both networks are shown."""

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import tiledse as ts
from tiledse.cli.app import app
from tiledse.evaluate.frames import frame_of

SIZE = (3, 8, 8)


class Net(nn.Module):
    """An SE block and a classifier of two classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.stem, self.fc1, self.fc2 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8 * 64, 2)
        said = {"input_size": SIZE, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        self.pretrained_cfg = said | {"crop_pct": 1.0, "interpolation": "nearest"}

    def forward(self, x):
        x = self.stem(x)
        x = x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(x.flatten(1))


def net():
    return Net().eval()


@pytest.fixture
def folder(tmp_path):
    lines = ["file,label"]
    for video, frames in (("a", (8, 9, 10)), ("b", (1, 4))):
        for n in frames:
            name = f"{video}_{n:03d}.png"
            colours = torch.randint(
                0, 255, (8, 8, 3), generator=torch.Generator().manual_seed(n), dtype=torch.uint8
            )
            Image.fromarray(colours.numpy()).save(tmp_path / name)
            lines.append(f"{name},{n % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_each_video_is_a_stream_of_its_own(folder):
    network = ts.open(net(), SIZE)
    plan = network.plan.with_tile("HxW:previous")
    images = ts.open_images(folder, prepare)
    logits = []
    video = ts.convert(net(), plan)
    with torch.no_grad():
        for name in sorted(p.name for p in folder.glob("*.png")):
            if name.endswith(("_008.png", "_001.png")):
                ts.reset_frames(video)
            logits.append(video(prepare(Image.open(folder / name))[None])[0])
        se = [net()(prepare(Image.open(p))[None])[0] for p in sorted(folder.glob("*.png"))]
    found = ts.evaluate(network, plan, images, frames=True)
    assert [i.tse for i in found.images] == [int(x.argmax()) for x in logits]
    assert [i.se for i in found.images] == [int(x.argmax()) for x in se]
    again = ts.evaluate(network, plan, images, frames=True)
    assert again == found


def prepare(image):
    return torch.tensor(list(image.convert("RGB").tobytes())).view(8, 8, 3).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_file_says_what_its_network_says(folder):
    network, images = ts.open(net(), SIZE), ts.open_images(folder, prepare)
    file = ts.onnx.export_se(net(), network.plan)
    other = ts.open(file, SIZE)
    expected = ts.evaluate(network, network.plan.with_tile("1xW:previous"), images, frames=True)
    assert ts.evaluate(other, other.plan.with_tile("1xW:previous"), images, frames=True) == expected
    with pytest.raises(ts.TiledSEError, match="single images are no stream"):
        ts.evaluate(other, other.plan.with_tile("1xW:previous"), images)


def test_frames_of_a_tile_without_a_state_are_images(folder):
    network, images = ts.open(net(), SIZE), ts.open_images(folder, prepare)
    plan = network.plan.with_tile("2xW")
    assert ts.evaluate(network, plan, images, frames=True) == ts.evaluate(network, plan, images)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("a_9.png", "a_10.png"),
            "frame 9 of 'a_.png' comes after frame 10; number frames with leading zeros",
        ),
        (("cat.png", "dog.png"), "image cat.png: frames are named by their sequence and their number"),
    ],
)
def test_what_is_no_order_of_frames(tmp_path, names, message):
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{n},0\n" for n in sorted(names)))
    network = ts.open(net(), SIZE)
    images = ts.open_images(tmp_path, prepare)
    with pytest.raises(ts.TiledSEError, match=message):
        ts.evaluate(network, network.plan.with_tile("HxW:previous"), images, frames=True)


def test_the_command_line_wants_frames_said(folder):
    given = ["eval", "tests.evaluate.test_frames:net", "--input", "3x8x8", "--tile", "HxW:previous"]
    given += ["--data", str(folder)]
    refused = CliRunner().invoke(app, given)
    assert refused.exit_code != 0
    shown = CliRunner().invoke(app, [*given, "--frames", "--json"])
    assert shown.exit_code == 0
    assert '"n": 5' in shown.stdout


def test_names_of_frames():
    assert frame_of("x/Seq05VD_f03210.jpg") == ("x/Seq05VD_f.jpg", 3210)
    assert frame_of("7.png") == (".png", 7)
