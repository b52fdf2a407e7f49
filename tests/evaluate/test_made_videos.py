"""Videos that are made of still images (benchmarks/video.py): where they end, and how they move."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.video import FRAMES, MOTIONS, SWING, Motion, moved, paths


@pytest.fixture(scope="module")
def picture():
    """Odd sides, and no two rows or columns alike."""
    noise = np.random.default_rng(0).integers(0, 256, (91, 133, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_video_ends_with_the_image_at_rest(motion):
    """So that SE sees in the last frame what it sees in plain evaluation, and each frame is a step from the next."""
    for number, path in enumerate(paths(10, motion)):
        sources, steps, angles = zip(*path)
        assert len(path) == FRAMES
        assert (sources[-1], steps[-1]) == (number, 0)
        assert len(set(angles)) == 1
        assert {abs(a - b) for a, b in itertools.pairwise(steps)} == {1}
        assert max(map(abs, steps)) == SWING
        other = (number + 5) % 10 if motion == "cut" else number
        assert set(sources[:-1]) == {other}


@pytest.mark.parametrize("motion", MOTIONS.values(), ids=list(MOTIONS))
def test_at_rest_a_frame_is_the_picture_itself(picture, motion):
    np.testing.assert_array_equal(moved(picture, motion, 0, 1.2, picture.size, 1), np.asarray(picture))


@pytest.mark.parametrize(("steps", "angle"), [(2, 0.0), (-3, 0.0), (1, np.pi / 2), (-2, np.pi / 2)])
def test_a_step_moves_by_parts_of_the_width(picture, steps, angle):
    """So many 224ths of the width a step; what comes in from beyond is the picture mirrored."""
    pixels = 3
    got = moved(picture, Motion(224 * pixels / picture.width, 0, 0), steps, angle, picture.size, 1)
    by, axis = steps * pixels, 1 if angle == 0.0 else 0
    pad = [(40, 40) if a == axis else (0, 0) for a in range(3)]
    beyond = np.pad(np.asarray(picture), pad, mode="reflect")
    expected = np.take(beyond, 40 + by + np.arange(picture.size[1 - axis]), axis)
    np.testing.assert_array_equal(got, expected)


def test_a_step_grows_and_brightens(picture):
    flat = Image.new("RGB", picture.size, (100, 50, 200))
    light = moved(flat, Motion(0, 0.1, 0.2), 2, 0.0, flat.size, 1)
    np.testing.assert_allclose(light.reshape(-1, 3).mean(0), [100 * 1.44, 50 * 1.44, 255], rtol=1e-5)
    middle = Image.new("RGB", (99, 99))
    middle.paste((255, 255, 255), (39, 39, 60, 60))
    near, far = (moved(middle, Motion(0, 0.1, 0), s, 0.0, middle.size, 1).mean() / 255 for s in (-1, 1))
    # A step away shows 1.1 times as much of the picture in each direction: the square is smaller by that.
    assert far == pytest.approx((21 / 99 / 1.1) ** 2, rel=0.02)
    assert near == pytest.approx((21 / 99 * 1.1) ** 2, rel=0.02)
