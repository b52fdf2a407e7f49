"""Recipes: every key and type is checked, and what is wrong is said with what would be right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiledse import TiledSEError
from tiledse.train.recipe import Recipe, parse_changes, read_recipe
from tiledse.train.tables import differences

BASE = 'classes = 10\n[[network]]\nmodel = "timm:regnety_002"\n[[variant]]\nname = "se"\n'


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("epoch = 2", ["no key 'epoch'", "did you mean 'epochs'"]),
        ("[optimizer]\nlearning_rate = 0.1", ["optimizer", "no key 'learning_rate'"]),
        ("[optimiser]\nlr = 0.1", ["no key 'optimiser'", "'optimizer'"]),
        ("epochs = 2.5", ["epochs", "2.5", "a whole number"]),
        ("epochs = true", ["epochs", "True", "a whole number"]),
        ('epochs = "ten"', ["epochs", "a whole number"]),
        ("epochs = 0", ["epochs = 0", "at least 1"]),
        ("batch_size = -8", ["batch_size = -8", "at least 1"]),
        ("task = 'classification'", ["task", "classify, segment, detect, distill"]),
        ("[optimizer]\nlr = 'fast'", ["lr", "a number"]),
        ("[augment]\ncrop_scale = [0.1]", ["crop_scale", "a list of 2"]),
        ("seeds = 3", ["seeds", "a list"]),
        ("seeds = []", ["at least one variant and one seed"]),
        ("variant = []", ["at least one variant and one seed"]),
        ("subset = 0.0", ["subset", "above 0"]),
        ("[[variant]]\ntile = '7xW'", ["the key 'name' is missing"]),
        ("[[variant]]\nname = 'a'\ntile = '7 rows'", ["7 rows"]),
        ("[[variant]]\nname = 'a/b'", ["no name of a variant", "a/b"]),
        ("[[variant]]\nname = 'a'\n[[variant]]\nname = 'a'", ["two variants are called 'a'"]),
        ("[[variant]]\nname = 'a'\nstart = 'b'", ["starts from 'b'", "scratch, weights"]),
        ("[[network]]\nname = 'regnety'", ["no key 'name'"]),
        ("network = 'timm:regnety_002'", ["network", "a list"]),
        ("as_is = ['7xQ']", ["7xQ"]),
        ("epochs = ", ["no TOML"]),
        ("[schedule]\nname = 'step'", ["step", "cosine, poly, constant"]),
        ("[optimizer]\nlr = -0.1", ["[optimizer] lr = -0.1", "of at least 0"]),
        ("[optimizer]\nlr = nan", ["nan"]),
        ("[optimizer]\nmomentum = 1.0", ["momentum", "of at least 0, below 1"]),
        ("[optimizer]\nweight_decay = -1e-4", ["weight_decay", "of at least 0"]),
        ("[schedule]\nwarmup_factor = 2.0", ["warmup_factor", "at most 1"]),
        ("[augment]\ncrop_scale = [0.5, 0.1]", ["crop_scale", "the smallest first"]),
        ("[augment]\nflip = 1.5", ["flip = 1.5", "at most 1"]),
        ("[loss]\nsmoothing = 1.0", ["smoothing = 1.0", "below 1"]),
        ("[loss]\ntemperature = 2.0", ["[loss] temperature does nothing for the task classify"]),
        ("backbone_stride = 8", ["backbone_stride does nothing for the task classify, only for segment"]),
        ("ema = 1.0", ["ema = 1.0", "below 1"]),
        ("ema = -0.5", ["ema = -0.5", "at least 0"]),
        ("cache = -1", ["cache = -1", "at least 0"]),
        ("cache = 1000000", ["cache = 1000000", "at most"]),
        ("seeds = [-1]", ["seeds = -1"]),
        ("seeds = [9223372036854775807]", ["seeds = 9223372036854775807"]),
        ("seeds = [1, 1]", ["seeds has 1 twice"]),
        ("input = '3x0x224'", ["CxHxW"]),
        ("input = '3x²x224'", ["CxHxW"]),
        ("scale = 3", ["scale is no table of tables"]),
        ("[scale]\nsmall = 3", ["scale is no table of tables"]),
        ("optimizer = 3", ["optimizer: expected a table of keys"]),
        ("[[optimizer]]\nlr = 1.0", ["optimizer: expected a table of keys"]),
        ("[variant]\nname = 'a'", ["variant", "expected a list"]),
        ("[[variant]]\nname = 'a\\u0000b'".replace("'", '"'), ["no name of a variant", "control characters"]),
        ("[[variant]]\nname = '..'", ["no name of a variant"]),
        ("[[variant]]\nname = 'a'\nkernel = [0, 1]", ["kernel of variant 'a' = 0"]),
        ("[[variant]]\nname = 'a'\nratio = 0.0", ["ratio of variant 'a'"]),
        ('[[network]]\nmodel = "a\\u0000b"', ["no MODEL"]),
        ("[[network]]\nmodel = 'm'\nbatch_size = 0", ["batch_size of m = 0"]),
        ("input = '224'", ["input = '224'", "CxHxW"]),
        ("[scale.small]\nepoch = 1", ["scale.small", "did you mean 'epochs'"]),
    ],
)
def test_wrong_recipes(text, parts):
    with pytest.raises(TiledSEError) as error:
        Recipe.parse(text)
    for part in parts:
        assert part in str(error.value)


def test_scale_and_changes():
    text = BASE.replace("classes = 10", "classes = 10\nepochs = 100") + (
        "[optimizer]\nlr = 0.8\nmomentum = 0.8\n[scale.small]\nepochs = 2\n[scale.small.optimizer]\nlr = 0.1\n"
    )
    plain = Recipe.parse(text)
    small = Recipe.parse(text, scale="small")
    both = Recipe.parse(text, {"epochs": 3, "optimizer.nesterov": False}, "small")
    assert (plain.epochs, plain.optimizer.lr) == (100, 0.8)
    assert (small.epochs, small.optimizer.lr, small.optimizer.momentum) == (2, 0.1, 0.8)
    assert (both.epochs, both.optimizer.lr, both.optimizer.nesterov) == (3, 0.1, False)
    assert differences(small.to_dict(), plain.to_dict()) == [("epochs", 2, 100), ("optimizer.lr", 0.1, 0.8)]
    with pytest.raises(TiledSEError, match="no scale 'tiny'; it has small"):
        Recipe.parse(text, scale="tiny")
    with pytest.raises(TiledSEError, match="no scale 'tiny'; it has none"):
        Recipe.parse(BASE, scale="tiny")


def test_one_network_of_several():
    recipe = Recipe.parse(
        'batch_size = 8\n[[network]]\nmodel = "timm:a"\n[[network]]\nmodel = "timm:b"\ninput = "3x260x260"\n'
        "batch_size = 4\nlr = 0.4\n[optimizer]\nlr = 0.8"
    )
    first, second = (recipe.for_network(network) for network in recipe.network)
    assert (first.input_size, first.batch_size, first.optimizer.lr) == ((3, 224, 224), 8, 0.8)
    assert (second.input_size, second.batch_size, second.optimizer.lr) == ((3, 260, 260), 4, 0.4)


def _set(value):
    """Without the keys that are None: TOML has none."""
    if isinstance(value, dict):
        return {key: _set(one) for key, one in value.items() if one is not None}
    return [_set(one) for one in value] if isinstance(value, list) else value


@given(
    st.integers(1, 500),
    st.floats(1e-6, 10, allow_nan=False),
    st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
)
def test_a_recipe_is_its_dictionary(epochs, lr, seeds):
    recipe = Recipe.parse(BASE, {"epochs": epochs, "optimizer.lr": lr, "seeds": seeds})
    again = Recipe.parse("", _set(recipe.to_dict()))
    assert again == recipe
    assert differences(recipe.to_dict(), again.to_dict()) == []


@pytest.mark.parametrize("text", ["epochs", "=3", " = 3"])
def test_wrong_changes(text):
    with pytest.raises(TiledSEError, match="expected key=value"):
        parse_changes([text])


def test_wrong_files(tmp_path):
    with pytest.raises(TiledSEError, match="cannot read recipe .*No such file"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TiledSEError, match="cannot read recipe"):
        read_recipe(tmp_path / "bytes.toml")
    (tmp_path / "bad.toml").write_text("epoch = 1")
    with pytest.raises(TiledSEError, match=r"bad.toml: recipe: no key 'epoch'"):
        read_recipe(tmp_path / "bad.toml")
