"""The networks of other libraries that hold squeeze-and-excite, with random weights; each library smallest first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn


class Network(NamedTuple):
    """One network: how it is made, and (C, H, W) of its image."""

    library: str
    family: str
    name: str
    build: Callable[[], nn.Module]
    size: tuple[int, int, int] | None


def pytorchcv() -> Iterator[Network]:
    """Every network of the model provider whose name says that it has SE; `expected` says whether it has."""
    from pytorchcv import model_provider

    families = (
        "mobilenetv3", "mnasnet", "ghostnet", "seresnet", "sepreresnet", "seresnext", "senet", "regnety",
        "efficientnet", "fastseresnet", "simplepose_mobile_mobilenetv3",
    )  # fmt: skip
    for name in model_provider._models:
        family = next((f for f in sorted(families, key=len, reverse=True) if name.startswith(f)), None)
        if family is not None:
            kind = "cifar" if re.search("cifar|svhn", name) else "bottleneck" if "resnetbc" in name else ""
            build = lambda name=name: model_provider.get_model(name, pretrained=False)  # noqa: E731
            # The largest ask for 672x672; any size will do, in contrast to those that end in a pool of 7x7.
            size = (3, 128, 128) if family == "efficientnet" else None
            yield Network("pytorchcv", family + kind, name, build, size)


def segmentation_models() -> Iterator[Network]:
    """Networks of segmentation_models_pytorch on encoders with SE, and decoders with scSE."""
    import segmentation_models_pytorch as smp

    encoders = (
        "efficientnet-b0", "timm-efficientnet-b0", "mobileone_s4", "timm-regnety_002", "timm-gernet_s",
        "timm-mobilenetv3_small_075", "timm-skresnet18", "se_resnet50", "se_resnext50_32x4d", "timm-resnest14d",
        "efficientnet-b1", "efficientnet-b2", "efficientnet-b3", "efficientnet-b4", "efficientnet-b5",
        "efficientnet-b6", "efficientnet-b7", "se_resnet101", "se_resnet152", "senet154",
    )  # fmt: skip
    for name in encoders:
        if name in smp.encoders.encoders:
            build = lambda name=name: smp.Unet(name, encoder_weights=None)  # noqa: E731
            yield Network(
                "segmentation_models_pytorch",
                re.split(r"[-_]?[sb]?\d", name)[0],
                f"Unet {name}",
                build,
                (3, 64, 64),
            )
    scse: dict[str, Callable[[], nn.Module]] = {
        "Unet scSE": lambda: smp.Unet("resnet18", encoder_weights=None, decoder_attention_type="scse"),
        "FPN efficientnet-b0": lambda: smp.FPN("efficientnet-b0", encoder_weights=None),
        "DeepLabV3Plus efficientnet-b0": lambda: smp.DeepLabV3Plus("efficientnet-b0", encoder_weights=None),
        "MAnet": lambda: smp.MAnet("resnet18", encoder_weights=None),
    }
    for name, build in scse.items():
        yield Network("segmentation_models_pytorch", name, name, build, (3, 64, 64))


def efficientnet_pytorch() -> Iterator[Network]:
    """B0 to B8, whose SE is written inline."""
    from efficientnet_pytorch import EfficientNet

    for i in range(8):
        name = f"efficientnet-b{i}"
        build = lambda name=name: EfficientNet.from_name(name)  # noqa: E731
        yield Network("efficientnet_pytorch", "efficientnet", name, build, (3, 64, 64))


def geffnet() -> Iterator[Network]:
    """Every network of geffnet's generators."""
    import geffnet as g
    from geffnet import gen_efficientnet, mobilenetv3

    names = [n for m in (mobilenetv3, gen_efficientnet) for n in getattr(m, "__all__", ()) if n[:1].islower()]
    for name in dict.fromkeys(names):
        build = lambda name=name: g.create_model(name, pretrained=False)  # noqa: E731
        yield Network("geffnet", name.removeprefix("tf_").split("_")[0], name, build, (3, 64, 64))


def pretrainedmodels() -> Iterator[Network]:
    """Its SENets."""
    import pretrainedmodels as p

    for name in (
        "se_resnet50",
        "se_resnext50_32x4d",
        "se_resnet101",
        "se_resnext101_32x4d",
        "se_resnet152",
        "senet154",
    ):
        build = lambda name=name: p.__dict__[name](pretrained=None)  # noqa: E731
        yield Network(
            "pretrainedmodels", "senet" if name == "senet154" else "se_resnet", name, build, (3, 224, 224)
        )


def transformers() -> Iterator[Network]:
    """Vision networks with SE in transformers, from small configurations."""
    import transformers as t

    regnet = {
        "hidden_sizes": [16, 24],
        "depths": [2, 2],
        "embedding_size": 8,
        "groups_width": 8,
        "layer_type": "y",
    }
    narrow = {"width_coefficient": 0.5, "depth_coefficient": 0.5}
    made: dict[str, tuple[str, str, dict[str, Any]]] = {
        "RegNet": ("RegNetConfig", "RegNetModel", regnet),
        "RegNet classifier": ("RegNetConfig", "RegNetForImageClassification", regnet),
        "EfficientNet": ("EfficientNetConfig", "EfficientNetModel", {**narrow, "hidden_dim": 640}),
        "EfficientNet classifier": (
            "EfficientNetConfig",
            "EfficientNetForImageClassification",
            {**narrow, "hidden_dim": 640},
        ),
        "Align vision": ("AlignVisionConfig", "AlignVisionModel", narrow),
        "PP-LCNet": ("PPLCNetConfig", "PPLCNetBackbone", {}),
        "PP-LCNet classifier": ("PPLCNetConfig", "PPLCNetForImageClassification", {}),
        "PP-LCNetV3": ("PPLCNetV3Config", "PPLCNetV3Backbone", {}),
        "PP-LCNetV4": ("PPLCNetV4Config", "PPLCNetV4Backbone", {}),
        "PP-OCRv5 mobile det": ("PPOCRV5MobileDetConfig", "PPOCRV5MobileDetForObjectDetection", {}),
        "PP-OCRv5 mobile rec": ("PPOCRV5MobileRecConfig", "PPOCRV5MobileRecForTextRecognition", {}),
        "HGNetV2": ("HGNetV2Config", "HGNetV2Backbone", {}),
    }
    for name, (config, model, settings) in made.items():
        if hasattr(t, config) and hasattr(t, model):
            build = lambda c=config, m=model, s=settings: getattr(t, m)(getattr(t, c)(**s))  # noqa: E731
            yield Network("transformers", name, name, build, (3, 96, 192) if "rec" in name else (3, 64, 64))


def mmpretrain() -> Iterator[Network]:
    """Backbones of mmpretrain with SE; its multimodal networks want an older transformers, and are left out."""
    from mmpretrain.utils import dependency

    dependency.WITH_MULTIMODAL = False
    from mmpretrain.models import backbones as b

    made: dict[str, tuple[str, dict[str, Any]]] = {
        "mobilenet_v3 small_050": ("MobileNetV3", {"arch": "small_050"}),
        "mobilenet_v3 small": ("MobileNetV3", {"arch": "small"}),
        "mobilenet_v3 large": ("MobileNetV3", {"arch": "large"}),
        "efficientnet b0": ("EfficientNet", {"arch": "b0"}),
        "efficientnet es": ("EfficientNet", {"arch": "es"}),
        "efficientnet_v2 b0": ("EfficientNetV2", {"arch": "b0"}),
        "regnet": ("RegNet", {"arch": "regnetx_400mf"}),
        "repvgg D2se": ("RepVGG", {"arch": "D2se"}),
        "mobileone s4": ("MobileOne", {"arch": "s4"}),
        "seresnet 50": ("SEResNet", {"depth": 50}),
        "seresnext 50": ("SEResNeXt", {"depth": 50}),
        "efficientnet b1": ("EfficientNet", {"arch": "b1"}),
        "efficientnet b2": ("EfficientNet", {"arch": "b2"}),
        "seresnet 101": ("SEResNet", {"depth": 101}),
    }
    for name, (cls, settings) in made.items():
        build = lambda c=cls, s=settings: getattr(b, c)(**s)  # noqa: E731
        yield Network("mmpretrain", name.split()[0], name, build, (3, 64, 64))


def monai() -> Iterator[Network]:
    """MONAI's networks with SE, in two dimensions."""
    from monai.networks import blocks
    from monai.networks import nets as n

    def efficient(name: str) -> nn.Module:
        return n.EfficientNetBN(name, pretrained=False, spatial_dims=2, in_channels=3, num_classes=5)

    for name in (
        "efficientnet-b0",
        "efficientnet-b1",
        "efficientnet-b2",
        "efficientnet-b3",
        "efficientnet-b4",
    ):
        yield Network("monai", "efficientnet", name, lambda name=name: efficient(name), (3, 64, 64))
    flexible = lambda: n.FlexibleUNet(3, 2, "efficientnet-b0", pretrained=False)  # noqa: E731
    yield Network("monai", "FlexibleUNet", "FlexibleUNet", flexible, (3, 64, 64))
    for name in ("SEResNet50", "SEResNext50", "SEResNet101", "SEResNext101", "SEResNet152", "SENet154"):
        build = lambda name=name: getattr(n, name)(spatial_dims=2, in_channels=3, num_classes=5)  # noqa: E731
        yield Network("monai", name.rstrip("0123456789"), name, build, (3, 64, 64))
    layers: dict[str, Callable[[], nn.Module]] = {
        "ResidualSELayer": lambda: blocks.ResidualSELayer(2, 8),
        "ChannelSELayer": lambda: blocks.ChannelSELayer(2, 8),
    }
    for name, layer in layers.items():
        build = lambda layer=layer: nn.Sequential(nn.Conv2d(3, 8, 3), layer(), nn.Conv2d(8, 8, 1))  # noqa: E731
        yield Network("monai", name, name, build, (3, 32, 32))


def torchvision() -> Iterator[Network]:
    """torchvision's networks with SE; the float networks of torchvision.quantization too."""
    from torchvision import models

    names = (
        "mobilenet_v3_small", "mobilenet_v3_large", "regnet_y_400mf", "efficientnet_b0", "efficientnet_v2_s",
        "regnet_y_800mf", "regnet_y_1_6gf", "efficientnet_b1", "efficientnet_b2", "regnet_y_3_2gf", "efficientnet_b3",
        "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "efficientnet_b4", "regnet_y_8gf",
        "efficientnet_b5", "efficientnet_b6", "efficientnet_b7",
    )  # fmt: skip
    settings = {
        "lraspp_mobilenet_v3_large": {"weights_backbone": None},
        "deeplabv3_mobilenet_v3_large": {"weights_backbone": None},
    }
    for name in names:
        build = lambda name=name: models.get_model(name, weights=None, **settings.get(name, {}))  # noqa: E731
        yield Network(
            "torchvision", re.split(r"_(?:[bvsy]_?)?(?:\d|small|large)", name)[0], name, build, (3, 64, 64)
        )
    quantised = lambda: models.quantization.mobilenet_v3_large(weights=None, quantize=False)  # noqa: E731
    yield Network("torchvision", "quantization", "quantization.mobilenet_v3_large", quantised, (3, 64, 64))


LIBRARIES: dict[str, Callable[[], Iterator[Network]]] = {
    "efficientnet_pytorch": efficientnet_pytorch,
    "torchvision": torchvision,
    "geffnet": geffnet,
    "monai": monai,
    "segmentation_models_pytorch": segmentation_models,
    "transformers": transformers,
    "mmpretrain": mmpretrain,
    "pytorchcv": pytorchcv,
    "pretrainedmodels": pretrainedmodels,
}


def live(model: nn.Module, size: tuple[int, int, int]) -> nn.Module:
    """The network in eval mode and float64, normalised by its own statistics: numbers neither vanish nor grow.

    Nothing is hidden by a branch that starts at zero, and nothing by float32, whose rounding deep networks magnify.
    """
    torch.manual_seed(0)
    model = model.double()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not parameter.any() and not key.endswith("bias"):
                parameter.fill_(0.5) if parameter.dim() < 2 else parameter.normal_(
                    0, parameter[0].numel() ** -0.5
                )
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        for module in norms:
            nn.init.normal_(module.bias, 0, 0.3) if module.bias is not None else None
            module.momentum = 1.0
        model.eval()
        for module in norms:
            module.training = True
        model(torch.randn(2, *size, dtype=torch.float64))
    model.eval()  # which mmpretrain's networks do not give back
    return model
