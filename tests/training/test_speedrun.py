"""The small network: what its stem does, what it returns."""

import pytest
import torch

from varcon_plugin.training.speedrun import SpeedrunNet, patch_basis


def test_the_basis_is_orthonormal_and_decorrelates_smooth_images():
    basis = patch_basis()
    flat = basis.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(12))
    generator = torch.Generator().manual_seed(0)
    luma = torch.randn(64, 1, 40, 40, generator=generator)
    tint = 0.3 * torch.randn(64, 3, 40, 40, generator=generator)
    images = torch.nn.functional.avg_pool2d(luma + tint, 5, stride=1)  # smooth

    def largest_correlation(patches):
        """Off the diagonal, of (12, N)."""
        return (torch.corrcoef(patches) - torch.eye(12)).abs().max()

    pixels = torch.nn.functional.unfold(images, 2).transpose(0, 1).flatten(1)
    components = torch.nn.functional.conv2d(images, basis).transpose(0, 1).flatten(1)
    assert largest_correlation(pixels) > 0.9
    assert largest_correlation(components) < 0.1


def test_features_are_pooled_over_the_image():
    net = SpeedrunNet((4, 8, 16)).eval()
    assert net.num_features == 16
    images = torch.randn(5, 3, 32, 32)
    features = net(images)
    assert features.shape == (5, 16)
    torch.testing.assert_close(net(images[2:3]), features[2:3])
    assert net(torch.randn(1, 3, 9, 9)).shape == (1, 16)


def test_every_parameter_learns_and_the_stem_is_no_parameter():
    net = SpeedrunNet((4, 8))
    assert all(name.startswith("groups.") for name, _ in net.named_parameters())
    net(torch.randn(6, 3, 16, 16)).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
    assert "basis" not in net.state_dict()


def test_bfloat16_is_close():
    torch.manual_seed(0)
    net, images = SpeedrunNet((8, 16)), torch.randn(16, 3, 32, 32)
    exact = net(images)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(images.contiguous(memory_format=torch.channels_last))
    assert half.dtype == torch.bfloat16
    assert (half - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("widths", [(), (8, 0)])
def test_mistakes_are_told(widths):
    with pytest.raises(ValueError, match="widths must be one or more numbers >= 1"):
        SpeedrunNet(widths)
