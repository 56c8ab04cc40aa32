import math

import numpy as np
import pytest

import augment
import dice
from augment import Augmentation, Augmenter, draw

FULL = Augmentation(4, 0.5, 5.0, 32, 2, 0.5, 0.4)
FILL = (123, 115, 102)
NOW = np.arange(64)


def images(n: int = 64, size: int = 64) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


LAW = {  # strength: what is in force at 64 px
    0.0: Augmentation(0, 0.0, 0.0, 0, 2, 0.0, 0.0),
    0.25: Augmentation(1, 0.125, 1.25, 16, 2, 0.125, 0.1),
    1.0: FULL,
    1.5: Augmentation(6, 0.5, 7.5, 39, 2, 0.75, 0.6),
    2.0: Augmentation(8, 0.5, 10.0, 45, 2, 1.0, 0.8),
}


@pytest.mark.parametrize("strength", LAW)
def test_law(strength):
    now = FULL.at_strength(strength, 64)
    expected = LAW[strength]
    assert now.mixup == pytest.approx(expected.mixup)
    assert (now.crop_padding, now.flip, now.rotate_degrees) == (
        expected.crop_padding,
        expected.flip,
        expected.rotate_degrees,
    )
    assert (now.cutout_size, now.cutout_holes, now.cutmix) == (
        expected.cutout_size,
        expected.cutout_holes,
        expected.cutmix,
    )


def test_caps():
    now = Augmentation(40, 0.5, 5, 60, 1, 0.9, 0.9).at_strength(2, 64)
    assert now.cutout_size == 48  # three quarters of the image
    assert now.crop_padding == 63  # a mirror shows no more
    assert (now.flip, now.cutmix, now.mixup) == (0.5, 1.0, 1.0)


def test_law_is_monotone():
    steps = [FULL.at_strength(s, 64) for s in np.linspace(0, 2, 201)]
    for field in ("crop_padding", "flip", "rotate_degrees", "cutout_size", "cutmix", "mixup"):
        values = [getattr(step, field) for step in steps]
        assert values == sorted(values)
        assert values[0] == 0 < values[-1]


def test_stronger_changes_more():
    source = images()
    smooth = np.repeat(np.repeat(source[:, ::16, ::16], 16, 1), 16, 2)
    changed = [
        np.abs(
            Augmenter(FULL.at_strength(s, 64), FILL, 0)(smooth, 1, NOW) - smooth.astype(int)
        ).mean()
        for s in (0, 0.5, 1, 2)
    ]
    assert changed[0] == 0
    assert changed == sorted(changed)
    assert len(set(changed)) == 4


def test_strength_0_is_the_identity_and_returns_a_copy():
    source = images()
    out = Augmenter(FULL.at_strength(0, 64), FILL, 0)(source, 1, NOW)
    np.testing.assert_array_equal(out, source)
    out[:] = 0
    assert source.any()
    labels = np.arange(64)
    mixed, partners, share = augment.mix_batch(source, labels, FULL.at_strength(0, 64), 0, 1, 0)
    assert mixed is source
    assert partners is labels
    assert (share == 1).all()


def only(**fields) -> Augmenter:
    return Augmenter(Augmentation(**fields), FILL, seed=3)


def test_flip_is_albumentations_flip():
    import albumentations

    source = images()
    out = only(flip=0.5)(source, 1, NOW)
    flip = albumentations.HorizontalFlip(p=1)
    flipped = np.array([(a != b).any() for a, b in zip(out, source, strict=True)])
    assert 20 < flipped.sum() < 44
    for i in np.flatnonzero(flipped):
        np.testing.assert_array_equal(out[i], flip(image=source[i])["image"])


def test_rotation_is_albumentations_rotation():
    import albumentations
    import cv2

    source, degrees = images(8), draw(Augmentation(rotate_degrees=30), 64, 3, 1, NOW[:8]).degrees
    assert np.abs(degrees).max() > 10
    assert {*np.sign(degrees)} == {-1, 1}
    out = only(rotate_degrees=30)(source, 1, NOW[:8])
    for i, angle in enumerate(degrees):
        rotate = albumentations.Affine(
            rotate=(angle, angle),
            p=1,
            interpolation=cv2.INTER_LINEAR,
            border_mode=cv2.BORDER_REFLECT_101,
        )
        expected = rotate(image=source[i])["image"].astype(int)
        # Its matrix differs in the last bits: here and there a pixel rounds the other way.
        difference = np.abs(out[i] - expected)
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.02


def test_crop_is_a_window_of_the_mirrored_image():
    source = images(16)
    out = only(crop_padding=4)(source, 1, NOW[:16])
    drawn = draw(Augmentation(crop_padding=4), 64, 3, 1, NOW[:16])
    padded = np.pad(source, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    for i in range(16):
        y, x = drawn.y[i], drawn.x[i]
        np.testing.assert_array_equal(out[i], padded[i, y : y + 64, x : x + 64])
    many = draw(Augmentation(crop_padding=4), 64, 3, 1, np.arange(5000))
    for offsets in (many.y, many.x):
        counts = np.bincount(offsets, minlength=9)
        assert len(counts) == 9  # -4 to 4, both ends included
        assert counts.min() > 450


def test_cutout_holes_have_their_size_inside_the_image():
    source = np.zeros((200, 64, 64, 3), np.uint8)
    out = only(cutout_size=16)(source, 1, np.arange(200))
    holes = (out == FILL).all(axis=3)
    assert (holes.sum(axis=(1, 2)) == 256).all()
    assert ((out == 0).all(axis=3) | holes).all()
    two = (only(cutout_size=16, cutout_holes=2)(source, 1, np.arange(200)) == FILL).all(axis=3)
    areas = two.sum(axis=(1, 2))
    assert 60 < (areas == 256).sum() < 140  # one hole
    assert (areas > 256).sum() > 60  # two
    assert areas.max() <= 512
    reached = holes.any(axis=0)
    assert reached[0].any() and reached[63].any() and reached[:, 0].any() and reached[:, 63].any()


def test_the_dice_of_different_purposes_are_independent():
    drawn = draw(FULL, 64, 0, 1, np.arange(20000))
    columns = [
        drawn.y,
        drawn.x,
        drawn.flip,
        drawn.degrees,
        drawn.holes[:, 0, 0],
        drawn.holes[:, 0, 1],
        drawn.holes[:, 1, 2] > drawn.holes[:, 1, 0],
    ]
    correlation = np.corrcoef(np.array(columns, float))
    assert np.abs(correlation - np.eye(len(columns))).max() < 0.03


def test_draws_differ_by_seed_epoch_and_position_and_by_nothing_else():
    def degrees(seed, epoch, positions):
        return draw(FULL, 64, seed, epoch, np.asarray(positions)).degrees

    base = degrees(0, 1, np.arange(100))
    assert len(np.unique(base)) == 100
    for other in (
        degrees(1, 1, np.arange(100)),
        degrees(0, 2, np.arange(100)),
        degrees(0, 1, np.arange(100, 200)),
    ):
        assert not np.isin(other, base).any()
    # A batch of another size, begun elsewhere, draws the same for the same position.
    np.testing.assert_array_equal(degrees(0, 1, np.arange(30, 70)), base[30:70])


def mix(augmentation, start, n=16):
    source = images(n)
    return source, augment.mix_batch(source, np.arange(n), augmentation, 0, 1, start)


def test_cutmix_pastes_the_neighbour_and_counts_its_share():
    shares = []
    for start in range(200):
        source, (mixed, partners, share) = mix(Augmentation(cutmix=1.0), start)
        neighbour = np.roll(source, 1, axis=0)
        pasted = (mixed == neighbour).all(axis=(0, 3))
        kept = (mixed == source).all(axis=(0, 3))
        assert (pasted | kept).all()
        assert share[0] == pytest.approx(kept.mean(), abs=1e-6)
        assert partners.tolist() == [15, *range(15)]
        shares.append(share[0])
    assert min(shares) < 0.3 and max(shares) > 0.9


def test_mixup_is_the_weighted_mean():
    for start in range(20):
        source, (mixed, partners, share) = mix(Augmentation(mixup=1.0), start)
        expected = share[0] * source + (1 - share[0]) * np.roll(source, 1, axis=0)
        assert np.abs(mixed - expected).max() <= 0.51
        assert partners.tolist() == [15, *range(15)]


@pytest.mark.parametrize(("cutmix", "mixup"), [(0.0, 0.0), (0.3, 0.2), (1.0, 1.0), (0.0, 1.0)])
def test_mixing_happens_as_often_as_asked(cutmix, mixup):
    source, labels = np.zeros((2, 8, 8, 3), np.uint8), np.arange(2)
    augmentation = Augmentation(cutmix=cutmix, mixup=mixup)
    mixed = [
        augment.mix_batch(source, labels, augmentation, 0, 1, start)[1] is not labels
        for start in range(1000)
    ]
    assert np.mean(mixed) == pytest.approx(min(cutmix + mixup, 1.0), abs=0.05)


def test_the_last_epochs_are_not_mixed():
    source, labels = images(8), np.arange(8)
    augmentation = Augmentation(cutmix=0.5, mixup=0.5, mix_epochs=3).at_strength(1.0, 64)
    for epoch in range(1, 6):
        mixed, partners, share = augment.mix_batch(source, labels, augmentation, 0, epoch, 0)
        assert (partners is labels) == (epoch > 3)
        assert (share == 1).all() == np.array_equal(mixed, source) == (epoch > 3)


def test_uniform_dice_are_uniform():
    u = dice.uniform(7, np.arange(100_000))
    assert u.min() >= 0 and u.max() < 1
    counts = np.bincount((u * 20).astype(int))
    assert np.abs(counts - 5000).max() < 350
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.01


@pytest.mark.parametrize(
    ("u", "n", "expected"), [(0.0, 5, 0), (0.999999, 5, 4), (0.2, 5, 1), (1.0, 5, 4)]
)
def test_integer_dice(u, n, expected):
    assert dice.integer(np.array(u), n) == expected


def test_order_is_a_permutation_of_its_own_for_each_key():
    one, two = dice.order(1000, 0, 1), dice.order(1000, 0, 2)
    assert sorted(one) == list(range(1000))
    assert (one != two).mean() > 0.98
    np.testing.assert_array_equal(one, dice.order(1000, 0, 1))


def test_rotation_matrix_keeps_the_middle():
    middle = np.array([31.5, 31.5, 1])
    for degrees in (0, 5, -30, 90):
        np.testing.assert_allclose(augment.rotation(degrees, 64) @ middle, [31.5, 31.5], atol=1e-9)
    quarter = augment.rotation(90, 64) @ [63, 31.5, 1]  # counter-clockwise: right goes up
    np.testing.assert_allclose(quarter, [31.5, 0], atol=1e-9)
    assert math.isclose(np.linalg.det(augment.rotation(17, 64)[:, :2]), 1)
