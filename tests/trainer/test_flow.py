"""Flow matching: the path and its derivative, the density of sigma, Wan's grid, guidance."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from trainer.flow import (
    FlowOptions,
    add_noise,
    euler_step,
    guide,
    sample_sigma,
    sampling_sigmas,
    shift_sigma,
    velocity,
    velocity_loss,
)


def test_velocity_is_the_derivative_of_the_path():
    clean, noise = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    clean, noise = clean[None], noise[None]
    sigma, h = torch.tensor([0.3], dtype=torch.float64), 1e-6
    slope = (add_noise(clean, noise, sigma + h) - add_noise(clean, noise, sigma - h)) / (2 * h)
    torch.testing.assert_close(slope, velocity(clean, noise), rtol=1e-6, atol=1e-8)
    assert torch.equal(add_noise(clean, noise, torch.zeros(1)), clean)
    assert torch.equal(add_noise(clean, noise, torch.ones(1)), noise)


def test_sigma_is_logit_normal_then_shifted():
    normal = torch.from_numpy(np.random.default_rng(0).standard_normal(20000))
    sigma = sample_sigma(normal, FlowOptions(shift=5.0))
    u = sigma / (5 - 4 * sigma)  # the shift undone
    assert stats.kstest(torch.logit(u).numpy(), "norm").pvalue > 0.01
    assert float(sigma.median()) == pytest.approx(5 / 6, abs=0.01)  # shift(1/2) = 5/6


def test_sampling_grid_is_wans_and_not_shifted_twice():
    sigmas = sampling_sigmas(40, 5.0)
    assert len(sigmas) == 41
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    expected = [5 * u / (1 + 4 * u) for u in np.linspace(1, 0, 41)]
    np.testing.assert_allclose(sigmas, expected, rtol=1e-6)
    diffusers = pytest.importorskip("diffusers")
    twice = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    twice.set_timesteps(40)
    assert sigmas[39] > 4 * twice.sigmas[39]  # the trap that the docstring names: its last step starts far too low


def test_euler_on_the_true_velocity_returns_the_clean_video():
    g = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(1, 2, 3, 4, 4, generator=g), torch.randn(1, 2, 3, 4, 4, generator=g)
    x, sigmas = noise.clone(), sampling_sigmas(40, 5.0)
    for sigma, following in pairwise(sigmas):
        x = euler_step(x, velocity(clean, noise), sigma, following)
    torch.testing.assert_close(x, clean, rtol=1e-4, atol=1e-5)


def test_guidance_of_phantom():
    neg, image, both = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0)
    assert guide(neg, image, both, 5.0, 7.5) == 1 + 5 * 1 + 7.5 * 2
    assert guide(neg, image, both, 5.0, 5.0) == neg + 5 * (both - neg)  # equal scales: the image pass cancels


def test_loss_weights_frames():
    predicted, clean, noise = torch.zeros(1, 2, 3, 2, 2), torch.zeros(1, 2, 3, 2, 2), torch.zeros(1, 2, 3, 2, 2)
    noise[:, :, 1] = 2  # velocity 2 in frame 1
    assert velocity_loss(predicted, clean, noise) == pytest.approx(4 / 3)
    assert velocity_loss(predicted, clean, noise, torch.tensor([[1.0, 0.0, 1.0]])) == 0
    assert velocity_loss(predicted, clean, noise, torch.tensor([[0.0, 1.0, 1.0]])) == pytest.approx(2)


def test_shift_keeps_the_ends():
    assert shift_sigma(torch.tensor([0.0, 1.0]), 5.0).tolist() == [0, 1]
