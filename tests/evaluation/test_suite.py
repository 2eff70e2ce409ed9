import json
from pathlib import Path
from unittest import mock

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import varcon_plugin.evaluation.suite as suite
from varcon_plugin.evaluation.corruption import COMMON
from varcon_plugin.evaluation.images import Encoder, Images, Splits
from varcon_plugin.evaluation.plots import draw_all
from varcon_plugin.evaluation.report import comparison, flatten, render, write_report
from varcon_plugin.evaluation.settings import PROTOCOLS, Settings
from varcon_plugin.evaluation.sources import digits
from varcon_plugin.evaluation.store import Features

SCHEMA = json.loads(Path(suite.__file__).with_name("report.schema.json").read_text())


class Blocks(nn.Module):
    """Means of 2 x 2 blocks of the first channel."""

    calls = 0

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images):
        Blocks.calls += 1
        blocks = nn.functional.avg_pool2d(images[:, :1].float(), 2)
        return self.scale * blocks.flatten(1)


class AsTensor:
    def __init__(self, note=""):
        self.note = note

    def __call__(self, item):
        return torch.from_numpy(item).permute(2, 0, 1)

    def __repr__(self):
        return f"AsTensor({self.note})"


def encoder(scale=1.0, note=""):
    about = {"source": "timm", "model": "blocks", "checkpoint": "none"}
    head = nn.Linear(16, 3)
    with torch.no_grad():
        head.weight.copy_(torch.arange(48).view(3, 16).cos())
    return Encoder(Blocks(scale), AsTensor(note), about, head)


def small_digits():
    def part(images, count):
        return Images(images.items[:count], images.labels[:count], images.classes)

    data = digits()
    return Splits(part(data.train, 300), part(data.test, 60), None, "digits")


SETTINGS = Settings(
    ks=(5, 20), shots=(1, 5), severities=(1, 5), transfers=(small_digits(),)
)


def results(_rank, batch_size):
    settings = Settings(ks=(5,), shots=(2,), severities=(3,), batch_size=batch_size)
    evaluation = suite.Evaluation(encoder(), small_digits(), settings)
    with mock.patch.object(suite, "COMMON", ("shot_noise", "fog")):
        return {name: evaluation.run(name) for name in PROTOCOLS[:6]}


@pytest.fixture(scope="module")
def evaluation():
    return suite.Evaluation(encoder(), small_digits(), SETTINGS)


@pytest.fixture(scope="module")
def report(evaluation, tmp_path_factory):
    """Of all protocols, with its pictures; and where it was written."""
    folder = tmp_path_factory.mktemp("report") / "new"
    protocols = {name: evaluation.run(name) for name in PROTOCOLS}
    found = evaluation.report(protocols)
    predicted = evaluation.probe.ranked[:, 0]
    found["pictures"] = draw_all(protocols, evaluation.test, predicted, folder)
    write_report(found, folder)
    return found, folder


def test_report_follows_its_schema(report):
    _, folder = report
    written = json.loads((folder / "report.json").read_text())
    jsonschema.validate(written, SCHEMA)
    assert set(written["protocols"]) == set(PROTOCOLS)
    del written["protocols"]["knn"]["results"][0]["k"]
    with pytest.raises(jsonschema.ValidationError, match="'k' is a required property"):
        jsonschema.validate(written, SCHEMA)


def test_report_is_written_for_people_too(report):
    found, folder = report
    text = (folder / "report.md").read_text()
    linear = found["protocols"]["linear"]["top1"]
    assert f"| logistic regression | {linear:.2f} |" in text
    assert "| **weather** |" in text
    assert "AlexNet" not in text  # the corruptions are not the released ones
    for picture in found["pictures"]:
        assert f"![{picture}]({picture})" in text
        with Image.open(folder / picture) as image:
            assert min(image.size) >= 400
    assert len(found["pictures"]) == 5
    rows = (folder / "report.csv").read_text().splitlines()
    assert rows[0] == "metric,value"
    assert f"linear top-1,{linear}" in rows


def test_numbers_are_plausible(report):
    protocols = report[0]["protocols"]
    assert protocols["linear"]["top1"] > 75
    assert protocols["transfer"]["results"][0]["value"] > 75
    assert protocols["knn"]["results"][0]["top1"] > 75
    means = protocols["class-mean"]["results"]
    assert [row["space"] for row in means] == ["features", "embeddings"]
    assert means[0]["top1"] > 75
    few = {(r["classifier"], r["shots"]): r for r in protocols["few-shot"]["results"]}
    assert few["logistic", 5]["mean"] > few["logistic", 1]["mean"]
    corruption = protocols["corruption"]
    assert len(corruption["results"]) == 15 * 2
    assert corruption["mce"] is None
    assert corruption["mean_top1"] < corruption["clean_top1"]


def test_pictures_of_many_classes(tmp_path):
    labels = torch.arange(120).repeat(2)
    features = torch.randn(240, 8)
    classes = tuple(f"n{label:08}" for label in range(120))
    test = Features(features, labels, classes)
    names = draw_all({"linear": {}, "clustering": {}}, test, labels.flip(0), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    with Image.open(tmp_path / "dendrogram.png") as image:
        assert 2000 < image.height < 3000  # 100 leaves, not 120


def test_comparison_puts_reports_side_by_side(report):
    found, _ = report
    other = json.loads(json.dumps(found))
    other["protocols"] = {"linear": dict(found["protocols"]["linear"], top1=12.5)}
    header, rows = comparison({"a": found, "b": other})
    assert header == ["metric", "a", "b"]
    table = {row[0]: row[1:] for row in rows}
    assert table["linear top-1"][1] == "12.50"
    assert table["k-NN (k=5, T=0.07) top-1"][1] == ""
    assert len(rows) == len(flatten(found))


def test_ranks_and_batch_sizes_do_not_matter(run_ranks):
    single = results(0, 64)
    double, other = run_ranks(results, 2, 7)
    assert all(value is None for value in other.values())
    for protocol, expected in single.items():
        assert double[protocol] == expected, protocol


def refused(_rank, cache):
    """What every rank says of a damaged cache, which rank 0 reads alone."""
    evaluation = suite.Evaluation(encoder(), small_digits(), cache=cache)
    with pytest.raises(ValueError, match="is damaged") as error:
        evaluation.run("knn")
    return str(error.value)


def test_all_ranks_say_what_is_damaged_in_the_cache(run_ranks, tmp_path):
    evaluation = suite.Evaluation(encoder(), small_digits(), cache=tmp_path)
    assert evaluation.train is not None
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    first, second = run_ranks(refused, 2, tmp_path)
    assert first.startswith(f"{path} is damaged (")
    assert second == first


def test_features_are_extracted_once_and_never_stale(tmp_path):
    data = small_digits()

    def batches(scale=1.0, note="", splits=data):
        before = Blocks.calls
        evaluation = suite.Evaluation(encoder(scale, note), splits, cache=tmp_path)
        first = float(evaluation.test.features[0].sum())
        return Blocks.calls - before, first

    calls, value = batches()
    assert calls == 1
    assert batches() == (0, value)
    assert batches(scale=2.0) == (1, pytest.approx(2 * value))  # other weights
    assert batches(note="flip")[0] == 1  # another transform
    items = [255 - item for item in data.test.items]  # other images
    inverted = data._replace(test=data.test._replace(items=items))
    assert batches(splits=inverted)[0] == 1
    assert batches() == (0, value)


def test_a_cache_file_of_other_features_is_refused(tmp_path):
    evaluation = suite.Evaluation(encoder(), small_digits(), cache=tmp_path)
    assert evaluation.test is not None
    (path,) = tmp_path.iterdir()
    other = suite.Evaluation(encoder(3.0), small_digits(), cache=tmp_path)
    wanted, _ = other.cached(other.data.test)
    path.rename(wanted)
    with pytest.raises(ValueError, match="holds other features than its name says"):
        other.extract(other.data.test, "test")


@pytest.fixture
def released(tmp_path):
    """Stands in for ImageNet-C: two images, both black at severity 5."""
    images = [tmp_path / f"{shade}.png" for shade in (0, 255)]
    for path, shade in zip(images, (0, 255), strict=True):
        Image.new("RGB", (224, 224), (shade,) * 3).save(path)

    def read(_root, _name, severity, classes):
        items = [images[label if severity < 5 else 0] for label in (0, 1)]
        return Images(items, torch.tensor([0, 1]), tuple(classes))

    return read


def test_released_images_give_the_published_mce(released, monkeypatch, tmp_path):
    shades = [np.full((224, 224, 3), 255 * (i % 2), np.uint8) for i in range(20)]
    classes = tuple(f"n{i:08}" for i in range(1000))
    images = Images(shades, torch.arange(20) % 2, classes)
    settings = Settings(imagenet_c=tmp_path, extra_corruptions=True)
    monkeypatch.setattr(suite, "read_released", released)
    module = nn.Sequential(nn.AvgPool2d(224), nn.Flatten())
    module.forward = lambda x: nn.functional.avg_pool2d(x.float(), 224).flatten(1)
    shade = Encoder(module, AsTensor(), {"model": "shade"})
    evaluation = suite.Evaluation(shade, Splits(images, images, None, "x"), settings)
    found = evaluation.corruption()
    # no errors but for severity 5, where half of the images are wrong: 10 % on average
    expected = suite.mean_corruption_error({name: [0, 0, 0, 0, 0.5] for name in COMMON})
    assert found["source"] == "imagenet-c"
    assert found["mce"] == pytest.approx(expected.mce)
    assert found["ce"] == pytest.approx(expected.ce)
    assert found["mean_top1_extra"] == pytest.approx(90)
    assert "**mCE" in render_section(found)


def render_section(found):
    model = {"model": "m", "source": "timm", "checkpoint": "c", "parameters": 1}
    data = {"name": "d", "train": 1, "test": 1, "classes": 1000}
    return render(
        {
            "model": model | {"dimension": 3},
            "data": data,
            "settings": {"seed": 0},
            "protocols": {"corruption": found},
            "pictures": [],
        }
    )


def test_empty_splits_and_unknown_protocols_are_errors():
    data = small_digits()
    empty = data._replace(test=Images([], torch.empty(0).long(), data.test.classes))
    with pytest.raises(ValueError, match="the test split is empty"):
        suite.Evaluation(encoder(), empty).run("knn")
    with pytest.raises(ValueError, match="protocol must be one of knn, linear"):
        suite.Evaluation(encoder(), data).run("svm")
    with pytest.raises(ValueError, match="give --transfer"):
        suite.Evaluation(encoder(), data).run("transfer")
