"Errors of annealed likelihoods against their spread, and bounds against exact values"

import math
import tempfile

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from hypothesis.configuration import set_hypothesis_home_dir
from torch import nn

from dlframe.annealing import (
    annealed_log_weights,
    bidirectional_bounds,
    effective_samples,
    log_mean_error,
    simulated,
)
from dlframe.distributions import DiagonalNormal, log_mean_exp
from dlframe.priors import StandardNormalPrior

set_hypothesis_home_dir(tempfile.gettempdir() + '/hypothesis')


class Humps(nn.Module):
    "A sine of the only latent, and `slope` times the latent, with noise of the size `scale`"

    def __init__(self, slope, scale=0.2):
        super().__init__()
        self.prior, self.slope, self.scale = StandardNormalPrior(1), slope, scale

    def decode(self, z):
        loc = torch.cat([2 * torch.sin(4 * z), self.slope * z], -1)
        return DiagonalNormal(loc, torch.full_like(loc, math.log(self.scale)))

    def log_likelihood(self, x):
        "By the rectangle rule of step 0.001"
        z = torch.linspace(-8, 8, 16001)[:, None]
        joint = self.prior().log_prob(z) + self.decode(z).log_prob(x[:, None])
        return joint.logsumexp(1) + math.log(0.001)


class Line(nn.Module):
    "The latent, with noise of 0.5: the data have the variance 1.25"

    def __init__(self):
        super().__init__()
        self.prior = StandardNormalPrior(1)

    def decode(self, z):
        return DiagonalNormal(z, torch.full_like(z, math.log(0.5)))

    def log_likelihood(self, x):
        return DiagonalNormal(torch.zeros(1), torch.tensor([math.log(1.25) / 2])).log_prob(x)


weights = st.lists(
    st.floats(-1e5, 1e5) | st.floats(-3, 3) | st.just(-math.inf), min_size=2, max_size=12
)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(weights)
def test_the_jackknife_leaves_out_each_chain(log_weights):
    logs = torch.tensor(log_weights, dtype=torch.float64)[:, None]
    n = len(logs)
    left_out = [log_mean_exp(torch.cat([logs[:i], logs[i + 1 :]])) for i in range(n)]
    left_out = torch.stack(left_out)
    found = log_mean_error(logs)
    if left_out.isfinite().all():
        expected = left_out.std(0, correction=0) * (n - 1) ** 0.5
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    else:
        assert found.item() == math.inf
    if (logs > -math.inf).any():
        assert 1 - 1e-9 <= effective_samples(logs).item() <= n + 1e-9
    else:
        assert effective_samples(logs).item() == 0


@pytest.mark.parametrize('model, largest', [(Line(), 1.25), (Humps(0.0), 1.25), (Humps(0.5), 2)])
def test_standard_errors_match_the_spread_of_repeated_estimates(model, largest):
    "300 estimates know their spread to a tenth; the jackknife is too large where few chains count"
    torch.manual_seed(0)
    x = torch.tensor([[1.0]] if isinstance(model, Line) else [[1.0, 0.5]])
    log_weights, _ = annealed_log_weights(model, x.expand(300, -1), 16, 30, n_leaps=4)
    spread = log_mean_exp(log_weights).std().item()
    error = log_mean_error(log_weights).square().mean().sqrt().item()
    assert 0.8 < error / spread < largest, (error, spread, effective_samples(log_weights).mean())


@pytest.mark.parametrize(
    'model, closed', [(Line(), False), (Humps(0.5, 1.0), False), (Humps(0.5), True)]
)
def test_exact_values_lie_between_the_bounds(model, closed):
    "Where modes are `closed` to each other rare chains make up the mean of 1/w"
    torch.manual_seed(0)
    n = 500
    z, x = simulated(model, n)
    bounds, truth = bidirectional_bounds(model, z, x, 8, 40, n_leaps=4), model.log_likelihood(x)
    for below in bounds.lower - truth, truth - bounds.upper:
        assert below.mean() < 3 * below.std() / n**0.5
        ratio = below.exp()
        assert closed or abs(ratio.mean() - 1) < 5 * ratio.std() / n**0.5


def test_the_gap_warns_where_acceptance_does_not():
    found = {}
    for slope in 0.0, 0.5:
        torch.manual_seed(0)
        model = Humps(slope)
        found[slope] = bidirectional_bounds(model, *simulated(model, 100), 16, 60, n_leaps=5)
    alike, apart = (bounds.gap.mean() for bounds in found.values())
    acceptances = [bounds.acceptance.mean() for bounds in found.values()]
    assert abs(acceptances[0] - acceptances[1]) < 0.05
    assert apart > 3 * alike, (apart, alike)


def test_chains_that_walk_back_use_the_sizes_of_the_forward_walk():
    "Other starts of the reverse walk leave the forward walk, and so its sizes, as they are"
    torch.manual_seed(0)
    model = Line()
    z, x = simulated(model, 5)
    found = []
    for shift in 0.0, 1.0:  # other starting points, the same forward walk
        torch.manual_seed(1)
        found.append(bidirectional_bounds(model, z + shift, x, 4, 10))
    assert found[0].lower.tolist() == found[1].lower.tolist()
    assert found[0].upper.tolist() != found[1].upper.tolist()
