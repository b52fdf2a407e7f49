"""timm's SE networks: one for each dialect and family (`make coverage` runs all of them)."""

from __future__ import annotations

import pytest

from tests.networks.check import build, check_network, input_size

# One for each dialect, and for each way in which a family uses it.
NETWORKS = (
    "regnety_002",  # SEModule
    "seresnet18",  # the same in a ResNet
    "rexnet_100",  # with a batch norm inside
    "nf_regnet_b0",  # its product is scaled by attn_gain, outside the block
    "coatnet_rmlp_0_rw_224",  # beside attention
    "tresnet_m",
    "repvit_m0_9",
    "efficientnet_b0",  # SqueezeExcite: SiLU, sigmoid
    "tf_mobilenetv3_small_075",  # ReLU, hard sigmoid, TF's padding
    "fbnetv3_b",
    "mixnet_s",
    "ghostnet_100",
    "lcnet_050",
    "hardcorenas_a",
    "ese_vovnet19b_dw",  # EffectiveSEModule
    "rdnet_tiny",
    "hgnet_tiny",  # EseModule
    "legacy_seresnet18",  # senet's SEModule
)


# One of each dialect always; the whole list takes two minutes on two cores.
ALWAYS = {
    "regnety_002", "tf_mobilenetv3_small_075", "ese_vovnet19b_dw", "hgnet_tiny",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]
)
def test_network(name):
    model = build(name)
    assert check_network(name, model, input_size(model)).blocks > 0
