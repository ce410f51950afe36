"""Pictures with points: the right pixels change, in the right colours, at any size."""

from __future__ import annotations

import numpy as np
import pytest

from pose.drawing import PREDICTED, TRUE, contact_sheet, crop_view, draw_landmarks

GREY = 90


def canvas(height=200, width=300) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def centroid(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Mean position (x, y) of how much the pixels moved from grey, after checking they moved towards `color`."""
    change = np.abs(image.astype(float) - GREY).sum(2)
    y, x = np.nonzero(change)
    weight = change[y, x]
    strongest = image[y[weight.argmax()], x[weight.argmax()]].astype(float)
    assert np.abs(strongest - color).max() < 60
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("point", [(100, 50), (100.25, 50.75), (17.5, 180.0)])  # on a pixel's centre, and between
def test_a_dot_is_where_the_point_is_to_a_fraction_of_a_pixel(point):
    drawn = draw_landmarks(canvas(), [point])
    # Pillow places shapes on the 4 times finer grid: half a fine pixel each way
    assert np.abs(centroid(drawn, PREDICTED) - point).max() <= 0.26


def test_the_image_itself_is_left_alone():
    image = canvas()
    assert not np.array_equal(draw_landmarks(image, [(50, 50)]), image)
    assert (image == GREY).all()


def test_edges_are_smooth():
    drawn = draw_landmarks(canvas(), [(20.2, 20.7), (280.6, 180.1)])
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 5  # a hard edge has the ground, the rim and the dot


def test_far_from_the_points_nothing_changes():
    drawn = draw_landmarks(canvas(), [(50, 50), (100, 100)])
    changed = (drawn != GREY).any(2)
    changed[44:57, 44:57] = changed[94:107, 94:107] = False
    assert not changed.any()


@pytest.mark.parametrize("side", [40, 300, 1500])  # a small face, a usual one, one too large for finer edges
def test_dots_grow_with_the_face(side):
    drawn = draw_landmarks(canvas(1600, 1600), [(30, 30), (30 + side, 30 + side)])
    area = (drawn != GREY).any(2)[:60, :60].sum()
    radius = max(0.9, 0.0085 * side) * 1.25  # with its rim
    assert 0.7 * np.pi * radius**2 < area < 1.4 * np.pi * (radius + 1) ** 2


def test_98_points_get_their_contours_and_others_do_not():
    angle = np.linspace(0, np.pi, 33)
    points = np.full((98, 2), np.nan)
    points[:33] = np.stack([150 - 90 * np.cos(angle), 60 + 90 * np.sin(angle)], 1)
    with_lines, without = draw_landmarks(canvas(), points), draw_landmarks(canvas(), points, contours=False)
    middle = (points[8:24] + points[9:25]) / 2
    for x, y in np.round(middle).astype(int):
        assert (with_lines[y - 1 : y + 2, x - 1 : x + 2] != GREY).any()
        assert (without[y, x] == GREY).all()
    assert np.array_equal(draw_landmarks(canvas(), points[:33]), without)


def test_true_points_lie_beneath_in_their_own_colour():
    both = draw_landmarks(canvas(), [(50, 50), (150, 50)], true_points=[(50, 150), (150, 50)])
    near = {
        spot: both[spot[1] - 4 : spot[1] + 5, spot[0] - 4 : spot[0] + 5] for spot in [(50, 50), (50, 150), (150, 50)]
    }
    distance = {
        (spot, color): np.abs(patch.astype(int) - color).sum(2).min()
        for spot, patch in near.items()
        for color in (PREDICTED, TRUE)
    }
    assert distance[(50, 50), PREDICTED] < 60 < distance[(50, 50), TRUE]
    assert distance[(50, 150), TRUE] < 60 < distance[(50, 150), PREDICTED]
    assert distance[(150, 50), PREDICTED] < 60 < distance[(150, 50), TRUE]


def test_points_outside_or_not_finite_are_left_out():
    points = [(-50.0, 10.0), (400.0, 10.0), (np.nan, 5.0), (np.inf, 5.0), (1e300, 1e300)]
    assert (draw_landmarks(canvas(), points) == GREY).all()
    assert np.array_equal(draw_landmarks(canvas(), [*points, (60, 60)]), draw_landmarks(canvas(), [(60, 60)]))


def test_points_on_the_border_are_drawn():
    drawn = draw_landmarks(canvas(), [(0, 0), (299, 199)])
    assert (drawn[0, 0] != GREY).any()
    assert (drawn[199, 299] != GREY).any()


@pytest.mark.parametrize("image", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3))], ids=["grey", "float"])
def test_pictures_of_another_kind_are_refused(image):
    with pytest.raises(ValueError, match="wanted uint8"):
        draw_landmarks(image, [(1, 1)])


class TestCropView:
    def test_a_face_at_its_own_size_is_its_pixels(self):
        image = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
        view = crop_view(image, [], (59.5, 49.5), 40.0, 40)  # pixels 40..79 and 30..69: their edges are 39.5 and 79.5
        assert np.array_equal(view, image[30:70, 40:80])

    def test_outside_the_image_is_black(self):
        view = crop_view(canvas(), [], (-0.5, -0.5), 100.0, 100)
        assert (view[:50] == 0).all()
        assert (view[:, :50] == 0).all()
        assert (view[51:, 51:] == GREY).all()

    def test_points_go_where_the_picture_goes(self):
        image = canvas()
        image[118:123, 198:203] = (255, 0, 0)  # a mark around (200, 120)
        plain = crop_view(image, [], (190.0, 110.0), 80.0, 320).astype(float)
        where = np.argwhere(plain[..., 0] - plain[..., 1] > 100).mean(0)[::-1]
        drawn = crop_view(canvas(), [[(200.0, 120.0)]], (190.0, 110.0), 80.0, 320)
        assert np.abs(centroid(drawn, PREDICTED) - where).max() < 0.3  # the dot's grid of 1/4 pixel

    def test_the_first_set_is_on_top(self):
        view = crop_view(canvas(), [[(50, 50)], [(50, 50)]], (50, 50), 40.0, 160)
        spot = view[77:83, 77:83].astype(int)
        assert np.abs(spot - PREDICTED).sum(2).min() < 120 < np.abs(spot - TRUE).sum(2).min()  # half a pixel off


class TestContactSheet:
    def test_tiles_stand_in_rows(self):
        tiles = [np.full((20, 30, 3), 10 * i, np.uint8) for i in range(5)]
        sheet = contact_sheet(tiles, 3)
        assert sheet.shape == (4 + 2 * 24, 4 + 3 * 34, 3)
        for i in range(5):
            x, y = 4 + i % 3 * 34, 4 + i // 3 * 24
            assert np.array_equal(sheet[y : y + 20, x : x + 30], tiles[i])

    def test_labels_are_written_under_their_tiles_and_stay_there(self):
        tiles = [np.full((20, 60, 3), 255, np.uint8)] * 2
        labelled = contact_sheet(tiles, 2, ["a", ""])
        assert (labelled[24:, :64] < 128).any()
        assert (labelled[:, 68:] == 255).all()
        long = contact_sheet(tiles, 2, ["a very long label that would run on", ""])
        assert (long[:, 68:] == 255).all()

    @pytest.mark.parametrize(
        ("tiles", "columns", "labels"),
        [
            ([], 2, None),
            ([np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)], 2, None),
            ([np.zeros((4, 4, 3), np.uint8)], 0, None),
            ([np.zeros((4, 4, 3), np.uint8)], 1, ["a", "b"]),
        ],
        ids=["no tiles", "two sizes", "no columns", "labels"],
    )
    def test_what_makes_no_sheet_is_refused(self, tiles, columns, labels):
        with pytest.raises(ValueError, match="tiles"):
            contact_sheet(tiles, columns, labels)
