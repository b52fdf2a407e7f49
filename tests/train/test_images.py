"""The order of an epoch and the variation of its images: properties, and PIL as the judge of a crop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.train.sets import picture
from tiledse.train.images import Epochs, KeptImages, Pictures, crop_resized
from tiledse.train.masks import IGNORED
from tiledse.train.sections import Augment
from tiledse.train.segmentation import vary
from tiledse.train.sources import open_source

MEAN = STD = (0.5, 0.5, 0.5)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 20), st.integers(0, 3), st.integers(0, 5))
def test_epochs(length, batch, batches, seed, epoch):
    order = Epochs(length, batch, batches, seed)
    order.epoch = epoch
    drawn = list(order)
    assert len(drawn) == batches == len(order)
    assert all(len(one) == batch for one in drawn)
    assert all(of == epoch for one in drawn for of, _ in one)
    indices = [index for one in drawn for _, index in one]
    # Each run through the set shows every image once before any twice.
    for start in range(0, len(indices) - length + 1, length):
        assert sorted(indices[start : start + length]) == list(range(length))
    counts = np.bincount(indices, minlength=length)
    assert counts.max() - counts.min() <= 1
    again = Epochs(length, batch, batches, seed)
    again.epoch = epoch
    assert list(again) == drawn


def test_epochs_differ_by_seed_and_epoch():
    orders = set()
    for seed in range(3):
        order = Epochs(50, 10, 5, seed)
        for order.epoch in range(3):
            orders.add(tuple(index for batch in order for _, index in batch))
    assert len(orders) == 9


SHARES = st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(lambda pair: tuple(sorted(pair)))
RATIOS = st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(lambda pair: tuple(sorted(pair)))


@settings(deadline=None)
@given(SHARES, RATIOS, st.floats(0, 1), st.integers(1, 9), st.integers(1, 9), st.integers(2, 12), st.data())
def test_crops_stay_inside(scale, ratio, flip, height, width, side, data):
    """A crop of a ramp keeps between its ends, is monotonic, and its mean is that of the place it shows."""
    augment = Augment(crop_scale=scale, crop_ratio=ratio, flip=flip)
    seed = data.draw(st.integers(0, 9))
    rows = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed))
    ramp = torch.linspace(-1, 1, side).expand(4, 1, side, side)
    crops = crop_resized(ramp, (height, width), rows, augment)
    assert crops.shape == (4, 1, height, width)
    assert crops.min() >= -1 - 1e-5
    assert crops.max() <= 1 + 1e-5
    steps = crops.diff(dim=3)
    mirrored = rows[:, 4] < flip
    assert (steps[~mirrored] >= -1e-5).all()
    assert (steps[mirrored] <= 1e-5).all()
    torch.testing.assert_close(crops, crops[:, :, :1].expand_as(crops), atol=1e-5, rtol=0)


def test_a_crop_is_pils_crop():
    """The part of an image that rows name, enlarged by PIL's bilinear filter."""
    image = picture(1, 3, 32)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    augment = Augment(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0), flip=0.0)
    # A half of each side, its place 0.25 and 0.75 of what is left over: from 4 and 12.
    got = crop_resized(x, (32, 32), torch.tensor([[0.5, 0.5, 0.25, 0.75, 0.9]]), augment)[0]
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR, box=(4, 12, 20, 28)), np.float32)
    inner = np.abs(got.permute(1, 2, 0).numpy() - expected)[2:-2, 2:-2]
    assert inner.max() <= 1  # PIL rounds to whole numbers


@settings(deadline=None)
@given(
    st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(lambda pair: tuple(sorted(pair))),
    st.floats(0, 1),
    st.integers(2, 12),
    st.integers(2, 12),
    st.integers(2, 12),
    st.integers(2, 12),
    st.integers(0, 9),
)
def test_masks_go_with_their_images(scales, flip, h, w, height, width, seed):
    """Where image and mask hold the same numbers they still do after scaling, cropping and flipping."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 5, (3, 1, 1), generator=generator).expand(3, h, w).clone()
    rows = torch.rand(3, 4, generator=generator)
    augment = Augment(resize_range=scales, flip=flip)
    images, classes = vary(masks[:, None].float() + 1, masks, (height, width), rows, augment)
    assert images.shape == (3, 1, height, width)
    assert classes.shape == (3, height, width)
    seen = classes != IGNORED
    # One class an image: inside it is that class, outside the image is 0 and its mask is ignored.
    for image, map_, own in zip(images[:, 0], classes, masks[:, 0, 0]):
        inside = map_ != IGNORED
        assert (map_[inside] == own).all()
        assert (image <= own + 1 + 1e-4).all()
        assert (image[inside] >= 0.25 * (own + 1) - 1e-4).all()  # a corner keeps a quarter of its weight
        assert (image[~inside] <= 0.75 * (own + 1) + 1e-4).all()
    if scales[0] >= 1 and (height, width) == (h, w):
        assert seen.all()


def test_ignored_pixels_stay_ignored():
    masks = torch.full((1, 6, 6), IGNORED)
    _, classes = vary(torch.rand(1, 3, 6, 6), masks, (6, 6), torch.rand(1, 4), Augment(resize_range=(1, 2)))
    assert (classes == IGNORED).all()


def test_variation_depends_on_seed_epoch_and_image_alone(folders):
    source = open_source(folders / "train")
    augment = Augment(jitter=0.4)

    def view(seed, epoch, index):
        return Pictures(source, (16, 16), augment, MEAN, STD, seed)[epoch, index][0]

    assert torch.equal(view(0, 1, 5), view(0, 1, 5))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = view(0, 1, 5)
    assert torch.equal(state, torch.get_rng_state())
    for other in ((1, 1, 5), (0, 2, 5), (0, 1, 6)):
        assert not torch.equal(first, view(*other))


def test_kept_images_vary_alike_in_any_batch():
    pixels = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8)
    labels = torch.arange(10)

    def views(batches):
        kept = KeptImages(pixels, labels, (12, 12), Augment(), MEAN, STD, 7)
        parts = [kept.ready(torch.tensor([(4, i) for i in batch]), torch.device("cpu")) for batch in batches]
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    whole, names = views([[3, 1, 4, 5, 9, 2]])
    split, same = views([[3, 1], [4], [5, 9, 2]])
    assert torch.equal(names, same)
    torch.testing.assert_close(whole, split)
    with pytest.raises(Exception, match="augment.jitter is not done on kept images"):
        KeptImages(pixels, labels, (12, 12), Augment(jitter=0.1), MEAN, STD, 7)
