"""A network is copied as copy.deepcopy copies it."""

import copy
from collections import OrderedDict

import torch
from torch import nn

from tiledse.networks.duplicating import deep_copy, duplicate


class Odd(nn.Module):
    """What a stranger's module may hold."""

    def __init__(self):
        super().__init__()
        self.layer = self.again = nn.Conv2d(3, 3, 1)
        self.shared = {}
        self.also = self.shared
        self.numbers = [1, [2, 3]]
        self.table = OrderedDict(a=self.numbers, b=self.layer)
        self.pair = (1, self.numbers)
        self.kinds = {1: self.layer}
        self.names = {"x", "y"}
        self.home = (self,)
        self.register_buffer("counts", torch.arange(3.0))
        self.view = self.counts[1:]
        self.act = torch.relu


class OwnWay(nn.Module):
    """Copies itself."""

    def __init__(self):
        super().__init__()
        self.child = nn.Linear(2, 2)

    def __deepcopy__(self, memo):
        made = OwnWay()
        memo[id(self)] = made
        made.child = copy.deepcopy(self.child, memo)
        made.by_itself = True
        return made


def test_a_copy_has_the_same_aliases():
    for make in (copy.deepcopy, deep_copy):
        old = Odd()
        new = make(old)
        assert new.layer is new.again is new.table["b"] is new.kinds[1] is not old.layer
        assert new.shared is new.also is not old.shared
        assert new.numbers == [1, [2, 3]]
        assert new.numbers is not old.numbers
        assert new.numbers[1] is not old.numbers[1]
        assert new.table["a"] is new.numbers is new.pair[1]
        assert type(new.table) is OrderedDict
        assert new.home[0] is new
        assert new.act is torch.relu
        assert new.names == old.names
        assert new.names is not old.names
        new.counts[2] = 7  # a view of a buffer is a view of it still
        assert new.view.tolist() == [1, 7]
        assert old.view.tolist() == [1, 2]


def test_what_stands_for_a_parameter_is_taken():
    old = Odd()
    new = deep_copy(old, {id(p): p for p in old.parameters()})
    assert new.layer.weight is old.layer.weight
    assert new.layer is not old.layer


def test_modules_with_ways_of_their_own_are_left_to_deepcopy():
    model = nn.Sequential(OwnWay(), torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())), nn.LSTM(2, 2)).eval()
    new = duplicate(model)
    assert new[0].by_itself
    assert new[0].child is not model[0].child
    assert not any(module.training for module in new.modules())  # a graph's own copy is in train mode
    assert torch.equal(new[2].weight_ih_l0, model[2].weight_ih_l0)


def test_hooks_are_copied():
    model = nn.Sequential(nn.ReLU())
    seen = []
    model[0].register_forward_hook(lambda *call: seen.append(1))
    deep_copy(model)(torch.zeros(1))
    assert seen == [1]
