"""Every protocol runs on a GPU, here a pretend one, with the CPU's numbers."""

import pytest
import torch
from pretend_gpu import PretendGpu

from varcon_plugin.evaluation.clustering import class_linkage, cluster
from varcon_plugin.evaluation.few_shot import few_shot
from varcon_plugin.evaluation.knn import knn_accuracy, nearest_neighbors
from varcon_plugin.evaluation.linear import linear_probe

CLASSES, DIM = 4, 8


def split():
    torch.manual_seed(0)
    means = 3 * torch.randn(CLASSES, DIM)
    train, test = torch.arange(60) % CLASSES, torch.arange(30) % CLASSES
    return (
        means[train] + torch.randn(60, DIM),
        train,
        means[test] + torch.randn(30, DIM),
        test,
    )


PROTOCOLS = {
    "knn": lambda *s: knn_accuracy(*s, ks=[5], temperatures=[0.1], chunk_size=16),
    "few-shot": lambda *s: few_shot(*s, shots=[2], draws=2),
    "linear": lambda *s: linear_probe(*s, cs=[0.1, 1.0])[:4],
    "clustering": lambda *s: cluster(s[2], s[3], max_samples=20),
    "dendrogram": lambda *s: class_linkage(s[2], s[3])[1],
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_mixes_no_devices(name):
    expected = PROTOCOLS[name](*split())
    with PretendGpu() as gpu:
        found = PROTOCOLS[name](*(gpu.put(x) for x in split()))
    assert found == expected
    assert gpu.mixed == {}


def test_knn_copies_a_bank_on_the_host_once():
    train, labels, test, _ = split()
    whole = nearest_neighbors(train, labels, test, 7)
    with PretendGpu() as gpu:
        found = nearest_neighbors(train, labels, gpu.put(test), 7, chunk_size=16)
    assert sum(gpu.copies.values()) == 2 * 4  # features and labels of four chunks
    torch.testing.assert_close(found.similarity.host, whole.similarity)
    assert torch.equal(found.label.host, whole.label)
