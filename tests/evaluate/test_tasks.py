"""Detection, segmentation, bootstrap: against pycocotools on drawn sets, torchmetrics, published baselines."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiledse import TiledSEError
from tiledse.context.sensitivity import sensitivity
from tiledse.evaluate.adapters import Detector, Segmenter, index_mask, semantic
from tiledse.evaluate.average_precision import Matches
from tiledse.evaluate.detection import CocoImages, Detection
from tiledse.evaluate.segmentation import MaskedImages, Segmentation
from tiledse.evaluate.statistics import bootstrap_interval, resampled_weights
from tiledse.evaluate.tasks import run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def coco(images, annotations):
    from pycocotools.coco import COCO

    truth = COCO()
    categories = [{"id": i, "name": str(i)} for i in range(4)]
    truth.dataset = {"images": images, "annotations": annotations, "categories": categories}
    truth.createIndex()
    return truth


def random_boxes(seed, n=24):
    rng = np.random.default_rng(seed)
    images = [{"id": 3 * i + 1, "width": 100, "height": 100, "file_name": f"{i}.png"} for i in range(n)]
    annotations, detections = [], []
    for image in images:
        rows = []
        for _ in range(rng.integers(0, 5)):
            (x, y), (w, h), c = rng.uniform(0, 60, 2), rng.uniform(5, 40, 2), int(rng.integers(0, 4))
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": int(rng.random() < 0.1)}
            annotations.append({"id": len(annotations) + 1, "image_id": image["id"], "category_id": c, **box})
            if rng.random() < 0.8:
                a, b, p, q = rng.normal(0, 3, 4)
                rows.append([x + a, y + b, x + w + p, y + h + q, rng.random(), c])
        for _ in range(rng.integers(0, 6)):
            (x, y), (w, h) = rng.uniform(0, 60, 2), rng.uniform(5, 40, 2)
            rows.append([x, y, x + w, y + h, 0.8 * rng.random(), int(rng.integers(0, 4))])
        detections.append(np.array(rows).reshape(-1, 6))
    return images, annotations, detections


@pytest.mark.parametrize("seed", range(3))
def test_drawing_images_is_evaluating_the_drawn_set(capsys, seed):
    """pycocotools on a set in which an image drawn three times stands three times."""
    images, annotations, detections = random_boxes(seed)
    matches = Matches(coco(images, annotations), [i["id"] for i in images], detections)
    capsys.readouterr()
    whole = matches.average_precision(np.ones((1, len(images))))[0]
    assert whole == pytest.approx(matches.statistics["AP"], abs=1e-9)
    weights = resampled_weights(len(images), 3, seed)
    for row, got in zip(weights, matches.average_precision(weights)):
        drawn, marked, found = [], [], []
        for image, boxes, times in zip(images, detections, row):
            for _ in range(times):
                drawn.append({**image, "id": len(drawn) + 1})
                found.append(boxes)
                for a in annotations:
                    if a["image_id"] == image["id"]:
                        marked.append({**a, "id": len(marked) + 1, "image_id": len(drawn)})
        expected = Matches(coco(drawn, marked), [i["id"] for i in drawn], found).statistics["AP"]
        assert got == pytest.approx(expected, abs=1e-9)


def test_no_detection_at_all_is_an_ap_of_nothing():
    images, annotations, _ = random_boxes(0)
    matches = Matches(coco(images, annotations), [i["id"] for i in images], [np.zeros((0, 6))] * len(images))
    assert matches.statistics["AP"] == 0
    assert matches.average_precision(np.eye(len(images))[:2]).max() <= 0


def test_the_bootstrap_interval_covers_what_it_should():
    """A drop of 2 points on 400 images: of many experiments about 95 % hold it."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        drop = rng.normal(2, 10, 400)
        draws = resampled_weights(400, 300, trial) @ drop / 400
        low, high, _ = bootstrap_interval(draws)
        held += low <= 2 <= high
    assert 0.9 <= held / 200 <= 0.99
    assert bootstrap_interval(rng.normal(5, 1, 1000))[2] < 0.01
    assert bootstrap_interval(np.zeros(1000))[2] == 1


def write_coco(folder, count=3, **changes):
    images, annotations, _ = random_boxes(1, count)
    for image in images:
        Image.new("RGB", (100, 100)).save(folder / image["file_name"])
    data = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in range(4)],
    }
    data.update(changes)
    (folder / "boxes.json").write_text(json.dumps(data))
    return folder / "boxes.json"


def tiny(image):
    return torch.zeros(3, 4, 4)


NONE = Detector(tiny, lambda output, sizes: [np.zeros((0, 6))] * len(sizes))


def detect(path, answer, output=None):
    detector = Detector(tiny, answer)
    task = Detection(CocoImages(path, detector), detector)
    given = torch.zeros(1, 1) if output is None else output
    return run(task, lambda x: iter([given.expand(len(x), 1)]), ["SE"], batch_size=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "lists no image: the set is empty"),
        ({"categories": []}, "lists no category"),
        ({"categories": [{"id": 9, "name": "x"}]}, "which is not listed"),
        ({"images": [{"id": 1, "file_name": "gone.png"}]}, "which is not listed"),
        ({"annotations": [{"id": 1}]}, "no COCO annotation file: an entry lacks 'image_id'"),
        ({"images": [{"id": 1}]}, "an entry lacks 'file_name'"),
        ({"images": [{"id": 1, "file_name": 7}]}, "file_name of image 1 to be a text"),
        (
            {"images": [{"id": 1, "file_name": "1.png", "width": "9"}]},
            "width of image 1 to be a whole number",
        ),
        (
            {"images": [{"id": 1, "file_name": "1.png"}] * 2, "annotations": []},
            "two of its images have the id 1",
        ),
        ({"images": 7}, "no COCO annotation file"),
    ],
)
def test_wrong_annotations(tmp_path, changes, message):
    with pytest.raises(TiledSEError, match=message):
        CocoImages(write_coco(tmp_path, **changes), NONE)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([1, 1, float("nan"), 5], "finite number, got nan"),
        ([float("inf"), 1, 5, 5], "finite number, got inf"),
        ([1, 1, 0, 5], "width and height above 0, got 0 x 5"),
        ([1, 1, 5, -5], "width and height above 0, got 5 x -5"),
        ([1, 1, "5", 5], "finite number, got '5'"),
        ([96, 1, 5.5, 5], "reaches out of its image of 100 x 100"),
        ([-1.5, 1, 5, 5], "reaches out of its image"),
        ([1, 1, 5, 10**400], "finite number"),
    ],
)
def test_boxes_that_are_none(tmp_path, box, message):
    image = {"id": 1, "file_name": "1.png", "width": 100, "height": 100}
    entry = {"id": 5, "image_id": 1, "category_id": 0, "bbox": box, "area": 25}
    with pytest.raises(
        TiledSEError, match=f"annotation 5: .*{message}|no COCO annotation file: it holds a number"
    ):
        CocoImages(write_coco(tmp_path, images=[image], annotations=[entry]), NONE)


def test_boxes_of_an_image_whose_size_nobody_says_and_slivers_to_train_on(tmp_path):
    image = {"id": 1, "file_name": "1.png"}
    entry = {"id": 5, "image_id": 1, "category_id": 0, "bbox": [90, 1, 12, 5], "area": 60}
    path = write_coco(tmp_path, images=[image], annotations=[entry])
    with pytest.raises(
        TiledSEError, match="image 1.png: annotation 5: its box .* reaches out of its image of 100"
    ):
        CocoImages(path, NONE).sample(0)
    path = write_coco(tmp_path, images=[image], annotations=[entry | {"bbox": [9, 1, 1.5, 0]}])
    with pytest.raises(TiledSEError, match="above 0"):
        CocoImages(path, NONE)
    CocoImages(path, NONE, slivers=True).sample(0)


def test_images_that_are_not_there_or_not_those_annotated(tmp_path):
    path = write_coco(tmp_path)
    (tmp_path / "boxes2.json").write_text("{}")
    with pytest.raises(TiledSEError, match="it has no 'images'"):
        CocoImages(tmp_path / "boxes2.json", NONE)
    Image.new("RGB", (90, 100)).save(tmp_path / "1.png")
    with pytest.raises(
        TiledSEError,
        match=r"image 1\.png: it is 90x100 \(width x height\), but its annotations are for 100x100",
    ):
        detect(path, lambda output, sizes: [np.zeros((0, 6))] * len(sizes))
    (tmp_path / "2.png").unlink()
    with pytest.raises(TiledSEError, match=r"there is no image 2\.png .* --images-dir"):
        CocoImages(path, NONE)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda o, s: [np.zeros((2, 5))] * len(s), r"image 0\.png: .* detections of shape \(2, 5\); expected \(K, 6\)"),
        (lambda o, s: [np.zeros((0, 6))], "detections of 1 images for a batch of 2"),
        (lambda o, s: [np.array([[0, 0, 1, 1, 0.5, 7]])] * len(s), "gave category 7, which the annotations"),
        (lambda o, s: [np.array([[0, 0, 1, np.nan, 0.5, 1]])] * len(s), "detections are not finite"),
        (lambda o, s: o["boxes"], "the adapter fails on what the SE network gives: IndexError"),
    ],
)  # fmt: skip
def test_a_wrong_adapter(tmp_path, answer, message):
    with pytest.raises(TiledSEError, match=message):
        detect(write_coco(tmp_path), answer)


def test_outputs_that_are_not_finite_name_the_image(tmp_path):
    with pytest.raises(TiledSEError, match=r"image 0\.png: the SE network's outputs are not finite"):
        detect(write_coco(tmp_path), NONE.detect, torch.tensor([[float("nan")]]))


def masked(folder, truths, name="masks"):
    for kind in ("images", name):
        (folder / kind).mkdir(exist_ok=True)
    for number, truth in enumerate(truths):
        Image.fromarray(truth.astype(np.uint8)).save(folder / name / f"{number}.png")
        Image.new("RGB", (8, 8)).save(folder / "images" / f"{number}.png")
    return folder


def segmenter_of(answers, classes=3, **options):
    """Gives the n-th prepared map for the n-th image."""
    asked = iter(answers)
    return Segmenter(
        tuple("abcdef"[:classes]), tiny, lambda o, sizes: [next(asked) for _ in sizes], index_mask, **options
    )


def test_mean_iou_is_torchmetrics(tmp_path):
    from torchmetrics.functional.classification import multiclass_jaccard_index

    rng = np.random.default_rng(0)
    truths = [rng.choice([0, 1, 2, 255], (6, 7), p=[0.4, 0.3, 0.2, 0.1]) for _ in range(5)]
    answers = [torch.from_numpy(rng.integers(0, 3, (6, 7))) for _ in truths]
    segmenter = segmenter_of(answers)
    task = Segmentation(MaskedImages(masked(tmp_path, truths), segmenter), segmenter)
    results = run(task, lambda x: iter([torch.zeros(len(x), 1)]), ["SE"], batch_size=2).networks[0]
    a, b = torch.stack(answers), torch.from_numpy(np.stack(truths))
    expected = 100 * multiclass_jaccard_index(a, b, num_classes=3, ignore_index=255)
    assert task.score(results)["mIoU"] == pytest.approx(float(expected), abs=1e-4)
    # Against oneself nothing is lost.
    same = task.compare(results, results)
    assert (same.agree, same.lost, same.gained, same.drop, same.p_value) == (5, 0, 0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("truth", "answer", "message"),
    [
        (
            np.full((4, 4), 5),
            torch.zeros(4, 4).long(),
            r"mask 0\.png has class 5, but the network has 3 \(0 to 2\)",
        ),
        (
            np.zeros((4, 4)),
            torch.zeros(4, 5).long(),
            r"image images/0\.png: the adapter gave a map of \(4, 5\)",
        ),
        (np.zeros((4, 4)), torch.zeros(4, 4), r"torch\.float32; expected class indices of shape \(4, 4\)"),
        (np.zeros((4, 4)), torch.full((4, 4), 3), "the adapter gave class 3; the network has 3 classes"),
    ],
)
def test_wrong_masks(tmp_path, truth, answer, message):
    segmenter = segmenter_of([answer])
    task = Segmentation(MaskedImages(masked(tmp_path, [truth]), segmenter), segmenter)
    with pytest.raises(TiledSEError, match=message):
        run(task, lambda x: iter([torch.zeros(len(x), 1)]), ["SE"])


def test_images_and_masks_that_do_not_match(tmp_path):
    folder = masked(tmp_path, [np.zeros((4, 4))] * 2)
    (folder / "masks" / "1.png").unlink()
    with pytest.raises(TiledSEError, match=r"image 1 has no mask \(1 of 2 images and 1 masks are alone\)"):
        MaskedImages(folder, segmenter_of([]))
    with pytest.raises(TiledSEError, match="no masks for"):
        MaskedImages(folder / "images", segmenter_of([]))
    (folder / "list.csv").write_text("file,mask\n")
    with pytest.raises(TiledSEError, match="the set is empty"):
        MaskedImages(folder / "list.csv", segmenter_of([]))
    (folder / "list.csv").write_text("file,mask\nimages/0.png,masks/9.png\n")
    with pytest.raises(TiledSEError, match=r"line 2: there is no file 'masks/9\.png'"):
        MaskedImages(folder / "list.csv", segmenter_of([]))


def test_logits_of_torchvision():
    output = {"out": torch.zeros(1, 3, 2, 2)}
    output["out"][0, 2] = 1
    (got,) = semantic("abc", (3, 4, 4)).segment(output, [(5, 6)])
    assert got.shape == (5, 6)
    assert (got == 2).all()
    with pytest.raises(TiledSEError, match=r"expected logits of shape \(N, 2, h, w\)"):
        semantic("ab", (3, 4, 4)).segment(output, [(5, 6)])


def test_the_segmenters_baselines(shared, tmp_path):
    """models/README.md: IoU 64.47, mean 65.56; 7 rows 64.40 / 64.87. Also: replacing all is the plan of all."""
    from tiledse import onnx
    from tiledse.onnx.network import OnnxNetwork

    selfie = example("selfie")
    selfie.main(str(shared / "data" / "coco128"), str(tmp_path / "people.csv"))
    segmenter = selfie.adapter((3, 256, 256))
    images = MaskedImages(tmp_path / "people.csv", segmenter)
    network = OnnxNetwork(onnx.load(shared / "models" / "selfie_segmentation.onnx"), (3, 256, 256), threads=1)
    task = Segmentation(images, segmenter, resamples=200)
    branches = network.branches([network.se.with_tile("7xW")])
    results = run(task, branches, ["SE", "TSE"], batch_size=8)
    se, tse = (task.score(each) for each in results.networks)
    assert len(results.names) == 54
    assert (round(se["mIoU"], 2), round(se["mIoU_image"], 2)) == (64.47, 65.56)
    assert (round(tse["mIoU"], 2), round(tse["mIoU_image"], 2)) == (64.40, 64.87)
    paired = task.compare(*results.networks)
    assert paired.drop_ci95[0] < paired.drop < paired.drop_ci95[1]


@pytest.mark.slow
@pytest.mark.parametrize(("tile", "expected"), [("7xW", 29.62)])
def test_the_detectors_baselines(shared, tile, expected):
    """models/README.md: AP 32.46; strips of 7 rows 29.62."""
    from tiledse import onnx
    from tiledse.onnx.network import OnnxNetwork

    detector = example("centernet").adapter((3, 512, 512))
    task = Detection(CocoImages(shared / "data" / "coco128" / "instances_val.json", detector), detector)
    network = OnnxNetwork(
        onnx.load(shared / "models" / "centernet_mobilenetv3_075.onnx"), (3, 512, 512), threads=1
    )
    results = run(task, network.branches([network.se.with_tile(tile)]), ["SE", "TSE"], batch_size=4)
    se, tse = (task.score(each) for each in results.networks)
    assert round(se["AP"], 2) == 32.46
    assert round(se["AP50"], 2) == 51.97
    assert round(tse["AP"], 2) == expected


def test_effdet_is_decoded_by_effdet(tmp_path):
    """The adapter gives what effdet's own bench gives, boxes in pixels of the image before it was letterboxed."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from effdet.bench import DetBenchPredict

    from tiledse.evaluate.adapters import effdet_detector
    from tiledse.networks.loading import load

    torch.manual_seed(0)
    model = load("effdet:efficientdet_d0", input_size=(3, 128, 128)).model
    detector = effdet_detector(model, (3, 128, 128))
    noise = np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)
    image = Image.fromarray(noise)
    x = detector.prepare(image)[None]
    assert x.shape == (1, 3, 128, 128)
    with torch.no_grad():
        (got,) = detector.detect(model(x), [image.size])
        info = {"img_scale": torch.tensor([200 / 128]), "img_size": torch.tensor([image.size])}
        expected = DetBenchPredict(model)(x, info)[0].numpy()
    assert np.array_equal(got, expected[expected[:, 4] > 0])
    assert got[:, 2].max() <= 200.001
    assert got[:, 3].max() <= 120.001


def test_sensitivity_of_parts_is_that_of_plain_evaluation(mobilenet, shared):
    """Each replacement alone: the same top-1 and divergence as running that network by itself."""
    from tiledse import Tile
    from tiledse.data.images import ListedImages
    from tiledse.data.opening import open_images
    from tiledse.data.preprocessing import Preprocessing
    from tiledse.evaluate.classification import Classification
    from tiledse.networks.network import TorchNetwork

    whole = open_images(shared / "data" / "imagenet_val1300", Preprocessing.of(mobilenet, kind="crop"))
    images = ListedImages(whole.folder, whole.files[:16], whole.preprocess)
    network = TorchNetwork(mobilenet, (3, 224, 224))
    task = Classification(images)
    found = sensitivity(network, task, [Tile.parse("3xW")], batch_size=8)
    record = found.to_dict()
    assert [entry["name"] for entry in record["blocks"]] == [block.name for block in network.se.blocks]
    assert [entry["name"] for entry in record["stages"]] == list(network.se.stages)
    assert record["not_shared"] == []
    x = torch.cat([batch.inputs for batch in images.batches(16)])
    labels = torch.tensor([label for _, label in images.files])
    for number in (0, 8):
        form = network.tiled(network.se.with_tile("3xW", network.se.blocks[number].name))
        with torch.no_grad():
            se, tse = mobilenet(x), form(x)
        right = [(logits.argmax(1) == labels).double().mean() * 100 for logits in (se, tse)]
        assert record["blocks"][number]["drop"] == pytest.approx(float(right[0] - right[1]))
        p, q = se.double().log_softmax(1), tse.double().log_softmax(1)
        assert record["blocks"][number]["divergence"] == pytest.approx(
            float((p.exp() * (p - q)).sum(1).mean()), abs=1e-6
        )
    for additive in record["additivity"]:
        alone = record["blocks" if additive["kind"] == "block" else "stages"]
        assert additive["summed"] == pytest.approx(sum(entry["drop"] for entry in alone))
        assert additive["excess"] == pytest.approx(record["all"][0]["drop"] - additive["summed"])
