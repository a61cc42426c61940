"Rings of tensors against the enumeration of all indices and all paths, for cores of any size"

import math
import tempfile

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.configuration import set_hypothesis_home_dir

from dlframe.priors import TRIP
from dlframe.tensor_rings import RingMixture, TensorRing
from dlframe.validation import InvalidValue

set_hypothesis_home_dir(tempfile.gettempdir() + '/hypothesis')
exhaustive = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)

# Entries of e^±80 nearly fill float32, those of e^±340 float64.
WIDEST = {torch.float32: 80.0, torch.float64: 340.0}
# A result is a sum of some logarithms, each rounded to its type.
CLOSE = {
    torch.float32: {'rtol': 2e-6, 'atol': 3e-5},
    torch.float64: {'rtol': 1e-12, 'atol': 1e-11},
}
SHARE = {torch.float32: 2e-5, torch.float64: 1e-10}  # of paths, as gradients


@st.composite
def log_cores(draw, dtype):
    "Logarithms of the cores of a small ring: spread evenly, or of two levels that are far apart"
    m = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 3), min_size=m, max_size=m))
    ranks = draw(st.lists(st.integers(1, 3), min_size=m, max_size=m))
    width = draw(st.sampled_from([0.1, 0.5, 1.0])) * WIDEST[dtype]
    two_levels = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    cores = []
    for k in range(m):
        shape = sizes[k], ranks[k], ranks[(k + 1) % m]
        unit = torch.rand(shape, generator=generator, dtype=torch.float64)
        unit = unit.round() if two_levels else unit
        shift = width * (2 * torch.rand(1, generator=generator, dtype=torch.float64) - 1)
        logs = (2 * width * unit - width + shift).clamp(-WIDEST[dtype], WIDEST[dtype])
        cores.append(logs.exp().to(dtype))
    return cores


def all_masses(logs):
    "Every multi-index, `[n, m]`, and the logarithm of its mass, `[n]`, summed path by path"
    m = len(logs)
    index = torch.cartesian_prod(*[torch.arange(len(core)) for core in logs]).reshape(-1, m)
    paths = torch.cartesian_prod(*[torch.arange(core.shape[1]) for core in logs]).reshape(-1, m)
    ends = paths.roll(-1, 1)
    terms = [logs[k][index[:, k, None], paths[None, :, k], ends[None, :, k]] for k in range(m)]
    return index, torch.stack(terms).sum(0).logsumexp(1)


def as_logs(cores):
    return [core.double().log().requires_grad_() for core in cores]


def check_gradients(ours, cores, theirs, logs, positive=False):
    "Gradients in the logarithms of cores; also in cores where no terms cancel, `positive`"
    dtype = cores[0].dtype
    found = torch.autograd.grad(ours, cores)
    expected = torch.autograd.grad(theirs, logs, retain_graph=True)
    for gradient, core, share in zip(found, cores, expected):
        raw = share / core.detach().double()
        fits = raw.abs() < torch.finfo(dtype).max / 10
        assert gradient[fits].isfinite().all()
        found_share = gradient.double() * core.detach().double()
        atol = SHARE[dtype]
        torch.testing.assert_close(found_share[fits], share[fits], rtol=0, atol=atol)
        if positive:
            fits &= raw > torch.finfo(dtype).tiny / torch.finfo(dtype).eps
            torch.testing.assert_close(gradient[fits].double(), raw[fits], rtol=atol, atol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@exhaustive
@given(data=st.data())
def test_a_ring_agrees_with_enumeration(dtype, data):
    cores = [core.requires_grad_() for core in data.draw(log_cores(dtype))]
    logs, ring = as_logs(cores), TensorRing(cores, validate_args=True)
    index, masses = all_masses(logs)
    total = masses.logsumexp(0)
    torch.testing.assert_close(ring.log_normalizer.double(), total, **CLOSE[dtype])
    log_probs = ring.log_prob(index)
    assert log_probs.dtype == dtype
    torch.testing.assert_close(log_probs.double(), masses - total, **CLOSE[dtype])
    rarest = masses.argmin()
    check_gradients(log_probs[rarest], cores, masses[rarest] - total, logs)
    check_gradients(ring.log_normalizer, cores, total, logs, positive=True)
    for k, marginal in enumerate(ring.marginals()):
        picked = [masses[index[:, k] == j].logsumexp(0) - total for j in range(len(cores[k]))]
        torch.testing.assert_close(marginal.double(), torch.stack(picked).exp(), **CLOSE[dtype])
    torch.manual_seed(0)
    drawn, drawn_log_probs = ring.sample_with_log_prob((50,))
    torch.testing.assert_close(drawn_log_probs, ring.log_prob(drawn), **CLOSE[dtype])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@exhaustive
@given(data=st.data())
def test_a_part_of_a_ring_agrees_with_enumeration(dtype, data):
    cores = data.draw(log_cores(dtype))
    index, masses = all_masses(as_logs(cores))
    dims = data.draw(st.lists(st.integers(0, len(cores) - 1), min_size=1, unique=True))
    try:
        part = TensorRing(cores).subring(dims)
    except InvalidValue:
        assert dtype is torch.float64  # every part of a float32 ring fits into float64
        return
    rows = index[:, sorted(dims)].unique(dim=0)
    masses = [masses[(index[:, sorted(dims)] == row).all(1)].logsumexp(0) for row in rows]
    log_probs = torch.stack(masses).log_softmax(0)
    torch.testing.assert_close(part.log_prob(rows).double(), log_probs, **CLOSE[dtype])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@exhaustive
@given(data=st.data())
def test_a_mixture_agrees_with_the_list_of_its_normals(dtype, data):
    cores = [core.requires_grad_() for core in data.draw(log_cores(dtype))]
    m, d = len(cores), max(map(len, cores))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    loc = torch.randn(m, d, generator=generator).to(dtype)
    log_scale = (5 - 25 * torch.rand(m, d, generator=generator)).to(dtype)
    index, masses = all_masses(logs := as_logs(cores))
    node = index[torch.randint(len(index), (3,), generator=generator)]
    at_nodes = loc[torch.arange(m), node]
    between = 3 * torch.randn(3, m, generator=generator).to(dtype)
    z = torch.cat([at_nodes, between]).requires_grad_()
    mixture = RingMixture(TensorRing(cores), loc, log_scale)
    z64 = z.detach().double().requires_grad_()
    normals = torch.distributions.Normal(loc.double(), log_scale.double().exp())
    densities = normals.log_prob(z64[..., None])  # [6, m, d]
    used = torch.arange(d) < torch.tensor([len(core) for core in cores])[:, None]
    top = densities.where(used, -math.inf).amax(-1)  # far away differences are rounded off
    below = (densities - top[..., None])[:, torch.arange(m), index].sum(-1)
    expected = (below + masses).logsumexp(1) + top.sum(-1) - masses.logsumexp(0)
    found = mixture.log_prob(z)
    # the square of a distance in units of a scale has four roundings
    close = dict(CLOSE[dtype], rtol=4 * torch.finfo(dtype).eps)
    torch.testing.assert_close(found.double(), expected, **close)
    (slope,) = torch.autograd.grad(found.sum(), z, retain_graph=True)
    (their_slope,) = torch.autograd.grad(expected.sum(), z64, retain_graph=True)
    steepest = their_slope.abs().max().item()
    assert slope.isfinite().all()
    torch.testing.assert_close(slope.double(), their_slope, rtol=1e-3, atol=1e-6 * steepest)
    check_gradients(found[0], cores, expected[0], logs)
    for k, marginal in enumerate(mixture.log_marginals(z).unbind(-1)):
        picked = torch.stack([masses[index[:, k] == j].logsumexp(0) for j in range(len(cores[k]))])
        theirs = (densities[:, k, : len(picked)] + picked.log_softmax(0)).logsumexp(-1)
        torch.testing.assert_close(marginal.double(), theirs, **close)


def stay_or_change(log_change, m, dtype=torch.float32):
    "Index and state are the same, mostly: each exception costs a factor"
    change = math.exp(log_change)
    cores = [[[1.0, change], [change, change]], [[change, change], [change, 1.0]]]
    return [torch.tensor(cores, dtype=dtype) for _ in range(m)]


def test_the_smallest_of_all_probabilities():
    "Was -87.3 beside -114.2: entries e^-116 of products fell below the smallest float32"
    ring = TensorRing(stay_or_change(-58, 4))
    found = ring.log_prob(torch.tensor([0, 0, 1, 1])).item()
    log_normalizer = math.log(2)  # two combinations without a change
    assert found == pytest.approx(math.log(6) - 116 - log_normalizer, abs=1e-4)


@pytest.mark.parametrize('dtype, change', [(torch.float32, -58), (torch.float64, -340)])
def test_long_rings(dtype, change):
    "300 indices, among them 150 runs of two: the mass is far below any number"
    ring = TensorRing(stay_or_change(change, 300, dtype))
    index = torch.tensor([0, 0, 1, 1] * 75)
    logs = ring.cores[0].double().log()
    path = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]], dtype=torch.float64)
    total = path
    for i in index:
        path = (path[..., None] + logs[i]).logsumexp(1)
        total = (total[..., None] + logs.logsumexp(0)).logsumexp(1)
    expected = path.diagonal().logsumexp(0) - total.diagonal().logsumexp(0)
    assert expected < 100 * change
    torch.testing.assert_close(ring.log_prob(index).double(), expected, rtol=1e-6, atol=0)


def test_draws_given_evidence_that_needs_the_smallest_entries():
    "The given places need two changes, whatever lies between: the draws choose where they happen"
    cores = stay_or_change(-58, 6)
    loc = torch.tensor([[-1.0, 1.0]]).repeat(6, 1)
    mixture = RingMixture(TensorRing(cores), loc, torch.full((6, 2), -4.0))
    torch.manual_seed(0)
    given_z = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    draws = mixture.sample_conditional(given_z, [0, 1, 4, 5], (4000,))
    index, masses = all_masses(as_logs(cores))
    allowed = (index[:, [0, 1, 4, 5]] == torch.tensor([0, 0, 1, 1])).all(1)
    expected = masses[allowed].softmax(0)
    assert (masses[allowed] < -100).all()
    places = (draws[:, None, [2, 3]] > 0) == index[allowed][:, [2, 3]]
    found = places.all(-1).double().mean(0)
    errors = (expected * (1 - expected) / 4000).sqrt()
    assert ((found - expected).abs() <= 5 * errors + 1e-12).all(), (found, expected)


def test_zeros_are_impossible_and_leave_gradients_finite():
    apart = torch.eye(2).diag_embed().requires_grad_()  # each value has a state of its own
    ring = TensorRing([apart, apart, apart], validate_args=False)
    index = torch.tensor([[0, 0, 0], [1, 1, 1], [0, 1, 0]])
    found = ring.log_prob(index)
    torch.testing.assert_close(found[:2], torch.full((2,), -math.log(2.0)))
    assert found[2] == -math.inf
    (gradient,) = torch.autograd.grad(found[:2].sum(), apart)
    assert gradient.isfinite().all()
    torch.testing.assert_close(torch.stack(ring.marginals()), torch.full((3, 2), 0.5))
    assert ring.sample((100,)).float().std(1).max() == 0  # all three agree


def test_rings_trained_together_may_be_wide_or_not():
    wide, narrow = stay_or_change(-58, 4), stay_or_change(-1, 4)
    together = [torch.stack(pair) for pair in zip(wide, narrow)]
    index = torch.cartesian_prod(*[torch.arange(2)] * 4)
    found = torch.func.vmap(lambda cores: TensorRing(cores).log_prob(index))(together)
    torch.testing.assert_close(found[0], TensorRing(wide).log_prob(index))
    torch.testing.assert_close(found[1], TensorRing(narrow).log_prob(index))
    each = torch.func.vmap(torch.func.grad(lambda cores: TensorRing(cores).log_prob(index[3])))
    assert all(gradient.isfinite().all() for gradient in each(together))


def test_a_prior_of_an_earlier_release_has_the_same_density():
    "Values computed before the arithmetic was chosen by the cores, of a prior made as here"
    torch.manual_seed(0)
    prior = TRIP(6, components=5, rank=3)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter))
    found = prior().log_prob(torch.linspace(-2, 2, 12).reshape(2, 6))
    torch.testing.assert_close(found, torch.tensor(EARLIER))


EARLIER = [-14.697528839111328, -19.30664825439453]
