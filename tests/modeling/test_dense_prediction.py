import torch

from detlab.modeling.dense_prediction import best_of_levels, flatten_cells, inside_images, label_boxes
from detlab.modeling.matcher import Matcher
from detlab.structures.boxes import Boxes, pairwise_iou
from detlab.structures.instances import Instances
from detlab.structures.object_batch import ObjectBatch, as_batch


def random_boxes(*shape, side=60.0):
    low = torch.rand(*shape, 2) * side
    return torch.cat((low, low + 2 + torch.rand(*shape, 2) * side), dim=-1)


def test_cells_come_row_by_row_and_anchor_by_anchor():
    maps = torch.arange(2 * 12 * 2 * 3).view(2, 12, 2, 3)
    expected = [
        [maps[n, 4 * a : 4 * a + 4, y, x].tolist() for y in range(2) for x in range(3) for a in range(3)]
        for n in range(2)
    ]
    assert flatten_cells(maps, 4).tolist() == expected
    assert flatten_cells(maps[:0], 4).shape == (0, 18, 4)


def make_targets():
    torch.manual_seed(0)
    return [Instances((99, 99), gt_boxes=Boxes(random_boxes(count))) for count in (3, 0, 1)]


def test_labels_equal_those_of_each_image_by_itself():
    targets = make_targets()
    for low_quality in (False, True):
        matcher = Matcher([0.1, 0.2], [0, -1, 1], allow_low_quality_matches=low_quality)
        boxes = random_boxes(3, 50)
        for given in (boxes, boxes[0], Boxes(boxes[0])):
            matches, labels = label_boxes(matcher, given, as_batch(targets))
            assert matches.shape == labels.shape == (3, 50)
            for n, own in enumerate(targets):
                each = boxes[n] if given is boxes else boxes[0]
                wanted, wanted_labels = matcher(pairwise_iou(own.gt_boxes, Boxes(each)))
                assert torch.equal(labels[n].long(), wanted_labels.long())
                # Where nothing overlaps, any object is as good as another.
                decided = (pairwise_iou(own.gt_boxes, Boxes(each)) > 0).any(dim=0)
                assert torch.equal(matches[n][decided], wanted[decided]) and (matches[n] < max(len(own), 1)).all()
        assert (labels == 1).any() and (labels == 0).any()


def test_objects_in_places_that_are_not_valid_match_nothing():
    targets, boxes = make_targets(), random_boxes(50)
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)
    expected = label_boxes(matcher, boxes, as_batch(targets))
    batch = as_batch(targets)
    for value in (float("nan"), float("inf"), 1e30, 30.0):
        padding = torch.full((3, 2, 4), value)
        padding[:, 1] = boxes[:3]
        wide = torch.cat((batch.tensor("gt_boxes"), padding), dim=1)
        valid = torch.cat((batch.valid, torch.zeros(3, 2, dtype=torch.bool)), dim=1)
        spoilt = ObjectBatch(batch.image_sizes, valid, {"gt_boxes": wide}, {"gt_boxes": Boxes})
        matches, labels = label_boxes(matcher, boxes, spoilt)
        assert torch.equal(labels, expected[1])
        assert torch.equal(matches[labels == 1], expected[0][labels == 1])


def test_boxes_are_inside_as_a_loop_finds_them():
    torch.manual_seed(1)
    boxes, sizes = random_boxes(200, side=80) - 10, [(60, 100), (100, 60)]
    for margin in (0.0, 5.0):
        inside = inside_images(boxes, torch.tensor(sizes).float(), margin)
        for n, (height, width) in enumerate(sizes):
            expected = [
                x1 >= -margin and y1 >= -margin and x2 < width + margin and y2 < height + margin
                for x1, y1, x2, y2 in boxes.tolist()
            ]
            assert inside[n].tolist() == expected and 0 < sum(expected) < 200


def test_the_best_of_each_level_are_decoded_alone():
    torch.manual_seed(2)
    scores, values = [torch.randn(2, 9), torch.randn(2, 3)], [torch.randn(2, 9, 4), torch.randn(2, 3, 4)]
    decoded = []

    def decode(level, own, places):
        decoded.append(own.shape)
        assert torch.equal(own, values[level].gather(1, places[..., None].expand(-1, -1, 4)))
        return own + 100 * level

    found = best_of_levels(scores, values, 4, decode)
    assert decoded == [(2, 4, 4), (2, 3, 4)]
    for n in range(2):
        order = [own[n].argsort(descending=True)[:4] for own in scores]
        expected = torch.cat([values[level][n][rows] + 100 * level for level, rows in enumerate(order)])
        assert torch.equal(found.boxes[n], expected)
        assert torch.equal(found.scores[n], torch.cat([own[n][rows] for own, rows in zip(scores, order)]))
        assert found.levels[n].tolist() == [0] * 4 + [1] * 3


def test_levels_without_cells_give_no_candidates():
    found = best_of_levels([torch.zeros(2, 0)], [torch.zeros(2, 0, 4)], 10, lambda level, own, places: own)
    assert found.boxes.shape == (2, 0, 4) and found.levels.shape == (2, 0)
