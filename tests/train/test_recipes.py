"""The files under recipes/: each is read, its networks are built, its numbers are the paper's."""

from __future__ import annotations

import contextlib
import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tiledse.networks.building import build_classifier
from tiledse.networks.detector import build_detector
from tiledse.networks.segmenter import build_segmenter
from tiledse.paper.networks import _REGNETS, _shapes_only
from tiledse.paper.printed import Method
from tiledse.train.recipe import read_recipe
from tiledse.train.variants import with_variant

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
PAPERS = sorted(path.stem for path in FOLDER.glob("table*.toml"))
PRINTED = json.loads((FOLDER.parent / "src/tiledse/paper/tables.json").read_text())

NAMES = {
    **{f"timm:{name}": paper for paper, name in _REGNETS.items()},
    **{f"timm:efficientnet_b{n}": f"EfficientNet-B{n}" for n in range(4)},
    **{f"effdet:efficientdet_d{n}": f"EfficientDet-D{n}" for n in range(3)},
    "timm:mobilenetv3_large_100": "MobileNetV3-L",
    "timm:mobilenetv3_small_100": "MobileNetV3-S",
}


def read(name, scale=None):
    return read_recipe(FOLDER / f"{name}.toml", scale=scale)


def rows(table):
    """(model, method) of every accuracy that a table prints."""
    return {(row["model"], row["method"]) for row in PRINTED["accuracy"] if row["table"] == table}


def method(variant):
    """The paper's row of a variant."""
    if variant.tile == "none":
        return Method.parse("Vanilla")
    plain = (
        Method.parse(f"TSE_{variant.tile.replace(':', '-')}") if variant.tile != "HxW" else Method.parse("SE")
    )
    return Method(plain.tile, variant.kernel, None if variant.ratio is None else int(variant.ratio))


def test_there_is_one_for_each_table():
    assert [name.split("_")[0] for name in PAPERS] == [
        "table1", "table2", "table4", "table4", "table5", "table6", "tableB1", "tableB2",
    ]  # fmt: skip


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_file_says_what_it_is(path):
    recipe = read_recipe(path)
    assert recipe.about
    text = path.read_text()
    assert text.startswith("# ")
    if path.stem.startswith("table"):
        assert recipe.about.startswith(f"Table {path.stem.removeprefix('table').split('_')[0]}")
        small = read_recipe(path, scale="small")
        assert small.epochs <= 10
        assert len(small.network) == 1
        assert [v.name for v in small.variant] == [v.name for v in recipe.variant]
        assert "From the paper" in text
        assert "Not said" in text
        assert "no result" in text


@pytest.mark.parametrize(
    ("files", "tables"),
    [
        (["table1_tiles"], ["1"]),
        (["table4_regnet", "table4_efficientnet"], ["4"]),
        (["table5_efficientdet"], ["5"]),
        (["table6_lraspp"], ["6"]),
        (["tableB1_excitation"], ["B1"]),
        (["tableB2_efficientdet", "table5_efficientdet"], ["B2"]),
        (["table2_finetune", "table4_regnet", "table4_efficientnet"], ["2"]),
    ],
)
def test_every_row_of_a_table_is_in_a_recipe(files, tables):
    got, as_is = set(), set()
    for name in files:
        recipe = read(name)
        for network in recipe.network:
            got |= {(NAMES[network.model], method(variant)) for variant in recipe.variant}
            as_is |= {
                (NAMES[network.model], Method.parse(f"TSE_{t.replace(':', '-')}")) for t in recipe.as_is
            }
    expected = {row for table in tables for row in rows(table) if not row[1].endswith(" drop")}
    assert expected
    for model, text in expected:
        where = as_is if text.endswith("^aw") else got
        wanted = Method.parse(text.removesuffix("^ft"))
        if tables == ["B1"] and text == "SE":
            wanted = Method.parse("SE")
        assert (model, wanted) in where, (model, text)
    # ... and nothing else is trained that the paper does not print, but what two tables share.
    if len(files) == 1:
        assert len(got) == len({row for row in expected if not row[1].endswith("^aw")})


def test_figure_5b_is_the_tiles_of_5a():
    recipe = read("table1_tiles")
    assert list(recipe.as_is) == [v.tile for v in recipe.variant if v.tile not in ("none", "HxW")]
    assert len(recipe.variant) == 21


@pytest.mark.parametrize("name", PAPERS)
def test_numbers_of_the_text(name):
    """Section 4.1 and 4.3."""
    recipe = read(name)
    kind = recipe.network[0].model.partition(":")[2]
    expected = {
        "regnety": (100, 0.8, 5e-5, 1000),
        "efficientnet": (100, 0.4, 5e-5, 1000),
        "efficientdet": (300, 0.08, 4e-5, 90),
        "mobilenetv3": (160, 0.01, 5e-4, 19),
    }[kind.split("_")[0]]
    if name == "table2_finetune":
        expected = (40, 0.08, 5e-5, 1000)  # the rate is ours
        assert recipe.subset == 0.1
    chosen = recipe.optimizer
    assert (recipe.epochs, chosen.lr, chosen.weight_decay, recipe.classes) == expected
    assert (chosen.name, chosen.momentum) == ("sgd", 0.9)
    assert recipe.schedule.name == ("poly" if kind.startswith("mobilenet") else "cosine")
    if kind.startswith("mobilenet"):
        assert recipe.epochs * recipe.steps_per_epoch == 160_000
        assert recipe.input_size == (3, 1024, 2048)
    sizes = {
        row["model"]: int(row["printed"]) for row in PRINTED["complexity"] if row["quantity"] == "resolution"
    }
    sizes |= {f"EfficientDet-D{n}": side for n, side in enumerate((512, 640, 768))}  # table B2
    for network in recipe.network:
        if NAMES[network.model] in sizes:
            side = sizes[NAMES[network.model]]
            assert recipe.for_network(network).input_size == (3, side, side), network


def _build(recipe):
    model, size = recipe.network[0].model, recipe.input_size
    if recipe.task == "detect":
        return build_detector(model, recipe.classes, size)
    if recipe.task == "segment":
        return build_segmenter(model, recipe.classes, size, recipe.backbone_stride)
    return build_classifier(model, recipe.classes, size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table4_efficientnet", "table6_lraspp", "tableB1_excitation"])
def test_networks_at_full_size(name):
    """On shapes alone: the largest network with its last variant, and the parameters that Table B1 prints of each."""
    recipe = read(name)
    for network in recipe.network[-1:]:
        own = recipe.for_network(network)
        variants = own.variant if name == "tableB1_excitation" else own.variant[-1:]
        for variant in variants:
            # Parameters do not depend on the image, and a small one is found sooner.
            size = (3, 64, 64) if name == "tableB1_excitation" else own.input_size
            with _shapes_only():
                model, plan = with_variant(_build(own), variant, size)
            assert {str(tile) for tile in plan.tiles} == {variant.tile}
            if name == "tableB1_excitation":
                text = next(
                    row["printed"]
                    for row in PRINTED["complexity"]
                    if row["table"] == "B1"
                    and row["quantity"] == "params"
                    and Method.parse(row["method"]) == method(variant)
                )
                params = sum(p.numel() for p in model.parameters())
                places = len(text.partition(".")[2])
                assert Fraction(params * 10**places // 10**6, 10**places) == Fraction(text), variant


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_networks_at_small_scale_train(name):
    """The first and the last variant give a loss with a gradient in each parameter that it has."""
    recipe = read(name, "small")
    own = recipe.for_network(recipe.network[0])
    torch.manual_seed(0)
    channels, height, width = own.input_size
    for variant in dict.fromkeys(
        (own.variant[0], own.variant[-1]) if own.task != "detect" else own.variant[-1:]
    ):
        model, _ = with_variant(_build(own), variant, own.input_size)
        out = model.train()(torch.randn(2, channels, height // 2 * 2, width))
        leaves = torch.utils._pytree.tree_leaves(out)
        sum(leaf.square().mean() for leaf in leaves).backward()
        without = [key for key, p in model.named_parameters() if p.grad is None]
        assert not without, (variant, without)


def test_the_meta_device_is_left_again():
    with contextlib.suppress(RuntimeError), _shapes_only():
        pass
    assert torch.zeros(1).device.type == "cpu"
