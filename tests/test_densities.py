"Every head and every prior over its whole range, against mpmath and quadrature"

import math
from typing import NamedTuple

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlframe.architectures import MLP, Conditional
from dlframe.distributions import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiagonalNormal,
    Laplace,
    NormalMixture,
    StandardNormal,
    head,
    heads,
    kl,
    validation,
)
from dlframe.prior_checks import log_aggregate
from dlframe.priors import ARDPrior, VampPrior, prior, priors

mp.mp.dps = 40
dtypes = pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float64], ids=['float32', 'float64']
)
repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=60)
few = settings(repeatable, max_examples=12)


def rounded(x, dtype):
    "The number as `dtype` holds it"
    return torch.tensor(x, dtype=torch.float64).to(dtype).item()


# ------------------------------------------------------------------------------------ references


def normal(params, x):
    loc, log_scale = params
    z = (x - loc) * mp.exp(-log_scale)
    slopes = [z * mp.exp(-log_scale), z * z - 1]
    weights = [(1 + abs(log_scale)) * w for w in (z * z + 1, abs(slopes[0]), z * z + 1)]
    return -z * z / 2 - log_scale - mp.log(2 * mp.pi) / 2, slopes, weights


def laplace(params, x):
    loc, log_scale = params
    z = abs(x - loc) * mp.exp(-log_scale)
    slopes = [mp.sign(x - loc) * mp.exp(-log_scale), z - 1]
    weights = [(1 + abs(log_scale)) * w for w in (z + 1, abs(slopes[0]), z + 1)]
    return -z - log_scale - mp.log(2), slopes, weights


def bernoulli(params, x):
    (logit,) = params
    nats = x * logit - mp.log1p(mp.exp(logit))
    return nats, [x - 1 / (1 + mp.exp(-logit))], [1 + abs(logit), 1]


def mean_distance(m):
    return 1 / m - 1 / mp.expm1(m) if m > 1e-15 else (1 - m / 6) / 2


def continuous_bernoulli(params, x):
    (logit,) = params
    m = abs(logit)
    distance = x if logit < 0 else 1 - x
    height = mp.log(m / -mp.expm1(-m)) if m else mp.mpf(0)
    slope = (mean_distance(m) - distance) * (-1 if logit < 0 else 1)
    return height - m * distance, [slope], [1 + abs(height) + m * distance, 1]


def grey_integral(a, b, function):
    "The integral over the inside of the grey values, from its peak outwards"
    edge = mp.log(511)
    peak = max(-edge, min(edge, mp.log(a / b)))
    log_density = lambda t: a * t - (a + b) * mp.log1p(mp.exp(t))
    width = 1 / (
        1 + mp.sqrt((a + b) / (4 * mp.cosh(peak / 2) ** 2)) + abs(a - (a + b) / (1 + mp.exp(-peak)))
    )
    ends = {sign * edge for sign in (-1, 1)} | {
        peak + sign * width * 2**k for sign in (-1, 1) for k in range(-1, 8)
    }
    points = sorted({peak} | {t for t in ends if abs(t) <= edge})
    return mp.quad(
        lambda t: function(t) * mp.exp(log_density(t) - log_density(peak)), points
    ), log_density(peak)


def beta(params, x):
    a, b = (mp.log1p(mp.exp(p)) + mp.mpf(1e-3) for p in params)
    y = (255 * mp.mpf(x) + 0.5) / 256
    mass, shift = grey_integral(a, b, lambda t: 1)
    up = grey_integral(a, b, lambda t: -mp.log1p(mp.exp(-t)))[0] / mass
    down = grey_integral(a, b, lambda t: -mp.log1p(mp.exp(t)))[0] / mass
    nats = (
        (a - 1) * mp.log(y)
        + (b - 1) * mp.log(1 - y)
        - mp.log(mass)
        - shift
        + mp.log(mp.mpf(255) / 256)
    )
    by_a, by_b = mp.log(y) - up, mp.log(1 - y) - down
    chain = [1 / (1 + mp.exp(-p)) for p in params]
    by_value = abs((a - 1) / y - (b - 1) / (1 - y))
    # logarithms of grey values are up to 6.2
    weights = [10 + abs(nats) + abs(a * by_a) + abs(b * by_b) + by_value, 10, 10]
    return nats, [by_a * chain[0], by_b * chain[1]], weights


def categorical(params, x):
    most = max(params)
    shares = [mp.exp(p - most) for p in params]
    total = mp.fsum(shares)
    slopes = [(i == x) - share / total for i, share in enumerate(shares)]
    return params[int(x)] - most - mp.log(total), slopes, [1 + max(map(abs, params))] * 4


# ------------------------------------------------------------------------------------ heads


class Case(NamedTuple):
    "A head, the range of its raw parameters and of its values"

    # Of parameters and value: nats, slopes, and the scale of rounding in each
    log_prob: object
    params: list  # Strategies
    value: object  # Parameters to a strategy
    options: dict = {}


log_scales = st.sampled_from([-300.0, -104.0, -89.0, -30.0, 0.0, 88.0, 104.0, 300.0]) | st.floats(
    -30, 30
)
logits = (
    st.sampled_from([0.0, -0.0, 1e-30, 1e-8, 0.004, 0.01, -17.0, -30.0, -100.0, 1e4, -1e4, 1e30])
    | st.floats(-200, 200)
    | st.floats(-0.02, 0.02)
)
raw = st.sampled_from([-100.0, -7.0, 0.0, 1e3, 1e5]) | st.floats(-8, 8)
grey = st.sampled_from([0.0, 1.0, 1 / 255, 254 / 255]) | st.floats(0, 1)
location = st.floats(-100, 100)
near = lambda params: (
    st.just(0.0) | st.floats(-30, 30).map(lambda z: z * math.exp(min(params[1], 80)))
)
moved = lambda params: near(params).map(lambda d: params[0] + d)
cases = {
    'normal': Case(normal, [location, log_scales], moved),
    'laplace': Case(laplace, [location, log_scales], moved),
    'bernoulli': Case(bernoulli, [logits], lambda params: grey),
    'continuous_bernoulli': Case(continuous_bernoulli, [logits], lambda params: grey),
    'beta': Case(beta, [raw, raw], lambda params: grey),
    'categorical': Case(
        categorical, [st.floats(-300, 300)] * 3, lambda params: st.integers(0, 2), {'classes': 3}
    ),
    # all mass at a point: its density is with respect to that point
    'delta': Case(None, [location], None),
}


def of(name, params, dtype):
    "The distribution of one number that a head makes of `params`, and the leaves"
    case = cases[name]
    made = head(name, len(params), (1,), **case.options)
    made.project = torch.nn.Identity()
    leaves = torch.tensor(params, dtype=dtype, requires_grad=True)
    return made(leaves), leaves


def test_every_head_and_prior_is_here():
    assert set(cases) == set(heads)
    assert set(made) == set(priors)


def check_head(name, data, dtype):
    case, limits = cases[name], torch.finfo(dtype)
    params = [rounded(data.draw(p), dtype) for p in case.params]
    x = data.draw(case.value(params))
    x = x if name == 'categorical' else rounded(x, dtype)
    nats, slopes, weights = case.log_prob([mp.mpf(p) for p in params], x)
    d, leaves = of(name, params, dtype)
    ours = d.log_prob(torch.tensor([x], dtype=torch.long if name == 'categorical' else dtype))
    assert not ours.isnan()
    if abs(nats) > limits.max:
        assert ours == -math.inf
        return 'beyond'
    ours.sum().backward()
    for mine, true, weight in zip([ours.item(), *leaves.grad.tolist()], [nats, *slopes], weights):
        if abs(true) > limits.max:
            continue
        # a few roundings of all that it is made of
        error = 32 * limits.eps * float(weight) + limits.tiny
        assert abs(mine - float(true)) <= error, (params, x, mine, float(true), error)
    return 'within'


@dtypes
@pytest.mark.parametrize('name', [n for n, case in cases.items() if case.log_prob])
def test_head_agrees_with_mpmath(name, dtype):
    "Log density and gradient of one number over the whole range of parameters"
    seen = []

    @(few if name == 'beta' else repeatable)
    @given(st.data())
    def check(data):
        seen.append(check_head(name, data, dtype))

    check()
    assert seen.count('within') > len(seen) / 3


def grid_of(name, d, params):
    "Values in float64 between which the density is smooth, dense where it is large, `[n, 1]`"
    if name in ('normal', 'laplace'):
        z = torch.linspace(-40, 40, 160_001, dtype=torch.float64)
        return params[0] + z * math.exp(params[1])
    if name == 'beta':
        t = torch.linspace(-math.log(511), math.log(511), 40_001, dtype=torch.float64)
        return ((256 * t.sigmoid() - 0.5) / 255).clamp(0, 1)
    farthest = min(1, 50 / (1 + abs(params[0])))
    distance = torch.linspace(0, 1, 40_001, dtype=torch.float64) ** 3 * farthest
    return distance if params[0] < 0 else (1 - distance).flip(0)


ranges = {
    'normal': [(0.0, -300.0), (0.0, -30.0), (3.0, 0.0), (0.0, 300.0)],
    'laplace': [(0.0, -300.0), (0.0, -30.0), (3.0, 0.0), (0.0, 300.0)],
    'continuous_bernoulli': [
        (logit,)
        for logit in (-1e4, -100.0, -17.0, -1.0, -0.01, 0.0, 0.01, 0.9, 1.1, 17.0, 36.0, 100.0, 1e4)
    ],
    'beta': [
        (-100.0, -100.0),
        (-3.0, -3.0),
        (-0.4, -0.4),
        (5.0, 5.0),
        (-100.0, 50.0),
        (300.0, -2.0),
        (1e4, 20.0),
        (1e3, 1e5),
    ],
}
densities = [(name, params) for name, many in ranges.items() for params in many]


def shares(x, nats):
    "The share of the mass below each of the values `x`, by the trapezoidal rule"
    density = nats.exp()
    below = torch.cumulative_trapezoid(density.flatten(), x.flatten())
    return torch.cat([below.new_zeros(1), below])


@pytest.mark.parametrize('name, params', densities, ids=str)
def test_head_integrates_to_one_and_samples_follow(name, params):
    "Integral, mean, variance and samples of a density, from that density alone"
    d, _ = of(name, params, torch.float64)
    x = grid_of(name, d, params)
    with torch.no_grad():
        nats = d.log_prob(x[:, None])
        below = shares(x, nats)
        assert abs(below[-1] - 1) < 1e-5  # the trapezoidal rule
        scale = d.variance.sqrt().item()
        mean = torch.trapezoid(nats.exp() * (x - d.mean), x)
        assert abs(mean) < 1e-4 * scale
        variance = torch.trapezoid(nats.exp() * ((x - d.mean) / scale) ** 2, x)
        assert abs(variance - 1) < 1e-4
        torch.manual_seed(0)
        n = 4000
        draws = d.sample((n,)).flatten().sort().values
    share = below[torch.searchsorted(x, draws).clamp(max=len(x) - 1)]
    steps = torch.arange(n) / n
    distance = torch.maximum((share - steps).max(), (steps + 1 / n - share).max())
    # Kolmogorov and Smirnov: exceeded once in a thousand seeds, and this is one
    assert distance < 1.95 / n**0.5


@pytest.mark.parametrize('logit', [-1e4, -100.0, -17.0, 0.0, 3.0, 40.0, 1e4])
def test_discrete_heads(logit):
    coin, _ = of('bernoulli', [logit], torch.float32)
    outcomes = torch.stack([coin.log_prob(torch.full((1,), float(x))) for x in (0, 1)])
    assert abs(outcomes.exp().sum() - 1) < 1e-6
    choice, _ = of('categorical', [logit, 0.0, -logit], torch.float32)
    outcomes = torch.stack([choice.log_prob(torch.tensor([i])) for i in range(3)])
    assert abs(outcomes.exp().sum() - 1) < 1e-6
    torch.manual_seed(0)
    for d, top in (coin, 2), (choice, 3):
        draws = d.sample((2000,)).flatten().long().bincount(minlength=top) / 2000
        like = torch.float32 if top == 2 else torch.long
        probabilities = torch.stack(
            [d.log_prob(torch.tensor([i], dtype=like)).exp() for i in range(top)]
        ).flatten()
        # five standard errors
        error = 5 * (probabilities * (1 - probabilities) / 2000).sqrt() + 1e-6
        assert ((draws - probabilities).abs() <= error).all()


def test_point():
    d, _ = of('delta', [2.0], torch.float32)
    assert d.log_prob(torch.tensor([2.0])) == 0 and d.log_prob(torch.tensor([2.1])) == -math.inf


# -------------------------------------------------------------------------- their other functions


@dtypes
@repeatable
@given(logit=logits, other=st.floats(-1e3, 1e3))
def test_continuous_bernoulli_functions(dtype, logit, other):
    "Mean, variance, entropy, divergence and the second derivative, against mpmath"
    eps, logit, other = torch.finfo(dtype).eps, rounded(logit, dtype), rounded(other, dtype)
    leaf = torch.tensor(logit, dtype=dtype, requires_grad=True)
    d, q = ContinuousBernoulli(leaf), ContinuousBernoulli(torch.tensor(other, dtype=dtype))
    m, far = mp.mpf(abs(logit)), mp.mpf(other)
    distance = mean_distance(m)
    mean = distance if logit < 0 else 1 - distance
    with mp.workdps(80):
        spread = 1 / m**2 - 1 / (4 * mp.sinh(m / 2) ** 2) if m > 1e-15 else mp.mpf(1) / 12
    height = mp.log(m / -mp.expm1(-m)) if m else mp.mpf(0)
    entropy = m * distance - height
    cross = continuous_bernoulli([far], mean)[0]
    expected = {
        'mean': (mean, 1),
        'variance': (spread, abs(spread)),
        'entropy': (entropy, 1 + abs(height)),
    }
    for name, (true, weight) in expected.items():
        mine = getattr(d, name)() if name == 'entropy' else getattr(d, name)
        allowed = 32 * eps * float(weight) + torch.finfo(dtype).tiny
        said = logit, name, mine.item(), float(true)
        assert abs(mine.item() - float(true)) <= allowed, said
    divergence = kl(d, q).item() - float(-entropy - cross)
    assert abs(divergence) <= 32 * eps * float(1 + abs(height) + abs(cross) + abs(far))
    nats = d.log_prob(torch.tensor(0.3, dtype=dtype))
    slope = torch.autograd.grad(nats, leaf, create_graph=True)[0]
    curve = torch.autograd.grad(slope, leaf)[0]
    assert abs(curve.item() + float(spread)) <= 32 * eps * float(abs(spread)) + 1e-37


@dtypes
@repeatable
@given(logit=logits, u=st.sampled_from([0.0, 1.0, 1e-6, 1 - 1e-6]) | st.floats(0, 1))
def test_continuous_bernoulli_quantiles(dtype, logit, u):
    "The quantile and its derivative with respect to the logit, against mpmath"
    eps, logit, u = torch.finfo(dtype).eps, rounded(logit, dtype), rounded(u, dtype)
    exact, exact_u = mp.mpf(logit), mp.mpf(u)
    if abs(logit) > 1e4:
        return
    with mp.workdps(60):  # one of which is exp(1e4) away from the other
        quantile = lambda x: mp.log1p(exact_u * mp.expm1(x)) / x
        tilted = lambda x: (exact_u * mp.exp(x) / (1 + exact_u * mp.expm1(x)) - quantile(x)) / x
        if u in (0.0, 1.0):
            true, slope = exact_u, mp.mpf(0)
        elif abs(logit) < 1e-12:
            true, slope = (1 + exact * (1 - exact_u) / 2) * exact_u, exact_u * (1 - exact_u) / 2
        else:
            true, slope = quantile(exact), tilted(exact)
    leaf = torch.tensor(logit, dtype=dtype, requires_grad=True)
    mine = ContinuousBernoulli(leaf).icdf(torch.tensor(u, dtype=dtype))
    rough = 32 * eps * float(1 + 1 / max(abs(exact), mp.mpf(0.003)))
    assert abs(mine.item() - float(true)) <= 32 * eps, (logit, u, mine.item(), float(true))
    assert abs(torch.autograd.grad(mine, leaf)[0].item() - float(slope)) <= rough, (logit, u)
    back = ContinuousBernoulli(leaf).cdf(mine.detach()).item()
    density = max(1.0, math.exp(min(ContinuousBernoulli(leaf).log_prob(mine.detach()).item(), 50)))
    assert abs(back - u) <= 64 * eps * density


def test_infinite_logits_are_refused():
    taken = 0
    with validation(True):
        for logit in -math.inf, math.inf, math.nan:
            with pytest.raises(ValueError, match='logits'):
                ContinuousBernoulli(torch.tensor([0.0, logit]))
        for logit in -3e38, 0.0, 3e38:
            nats = ContinuousBernoulli(torch.tensor([logit])).log_prob(torch.tensor([0.5]))
            taken += nats.numel()
    assert taken == 3


@repeatable
@given(p=log_scales, q=log_scales, d=st.floats(-10, 10))
def test_divergences_of_normals(p, q, d):
    "KL divergences as mpmath's where they fit into float32, infinite where not"
    p, q, d = (rounded(x, torch.float32) for x in (p, q, d))
    t = lambda *x: torch.tensor(x, requires_grad=True)
    ratio, z = mp.mpf(p) - q, mp.mpf(d) * mp.exp(-mp.mpf(q))
    away = abs(mp.mpf(d)) * mp.exp(-mp.mpf(p))
    zero, own, scale = t(0.0), t(p), t(q)
    cases = [
        (
            kl(DiagonalNormal(t(d), own), DiagonalNormal(zero, scale)),
            (mp.exp(2 * ratio) + z * z - 1) / 2 - ratio,
        ),
        (
            kl(DiagonalNormal(t(d), own), StandardNormal(zero, zero)),
            (mp.expm1(2 * mp.mpf(p)) + mp.mpf(d) ** 2) / 2 - p,
        ),
        (
            kl(Laplace(t(d), own), Laplace(zero, scale)).sum(),
            abs(z) + mp.exp(ratio - away) - 1 - ratio,
        ),
        (kl(DiagonalNormal(t(d), own), ARDPrior(1)()), mp.log1p(away**2) / 2),
    ]
    for mine, true in cases:
        if true > 3e38:
            assert mine.item() == math.inf
        else:
            # exponents of 300 are exact to 3e-5
            torch.testing.assert_close(mine.item(), float(true), rtol=4e-5, atol=1e-6)
        if true < 1e30:
            assert torch.autograd.grad(mine, own)[0].isfinite().all()
    ends = DiagonalNormal(t(d), own)
    found = torch.cat([ends.rsample(), ends.variance, ends.stddev, ends.entropy()[None]])
    assert not found.isnan().any()


@pytest.mark.parametrize('a, b', [(-150.0, 0.0), (120.0, -120.0), (0.0, 1e4), (3.0, 3.0)])
def test_divergences_of_choices(a, b):
    "Finite, where torch rounds a probability to 0 and calls the divergence infinite"
    p, q = torch.tensor([a, 0.0]), torch.tensor([b, 0.0])
    exact = bernoulli_kl(a, b)
    for made in (lambda x: Categorical(logits=x)), (lambda x: Bernoulli(logits=x[0])):
        assert abs(kl(made(p), made(q)).item() - exact) < 1e-5 * (1 + exact)


def bernoulli_kl(a, b):
    share = lambda logit: 1 / (1 + mp.exp(-mp.mpf(logit)))
    pairs = [(share(a), share(b)), (share(-a), share(-b))]
    return float(mp.fsum(p * mp.log(p / q) for p, q in pairs))


# ------------------------------------------------------------------------------------ mixtures


def exact_mixture(logits, loc, log_scale, z):
    "The log density in mpmath, each mean subtracted from the sample"
    each = []
    for weight, means, scales in zip(logits, loc, log_scale):
        parts = [normal([mp.mpf(m), mp.mpf(s)], mp.mpf(x))[0] for m, s, x in zip(means, scales, z)]
        each.append(mp.mpf(weight) + mp.fsum(parts))
    total = mp.log(mp.fsum(mp.exp(w) for w in logits))
    most = max(each)
    return most + mp.log(mp.fsum(mp.exp(e - most) for e in each)) - total


@dtypes
@repeatable
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 12),
    deep=st.floats(-30, 3),
    spread=st.floats(0, 100),
    place=st.sampled_from(['mean', 'near', 'far']),
)
def test_mixture_agrees_with_mpmath(dtype, seed, k, deep, spread, place):
    "At a mean, within a few scales of one and far from all"
    torch.manual_seed(seed)
    logits, loc = torch.randn(k, dtype=dtype), spread * torch.randn(k, 2, dtype=dtype)
    log_scale = deep * torch.rand(k, 2, dtype=dtype)
    away = {
        'mean': 0.0,
        'near': log_scale[0].exp() * torch.randn(2, dtype=dtype),
        'far': spread * torch.randn(2, dtype=dtype),
    }
    z = loc[0] + away[place]
    true = exact_mixture(logits.tolist(), loc.tolist(), log_scale.tolist(), z.tolist())
    mine = NormalMixture(logits, loc, log_scale).log_prob(z).item()
    if true < -3e38 and dtype == torch.float32:
        assert mine == -math.inf
    else:
        assert abs(mine - float(true)) <= (1e-6 + 2 * torch.finfo(dtype).eps) * max(
            1.0, abs(float(true))
        )


@pytest.mark.parametrize(
    'deep, spread',
    [(-20.0, 10.0), (-12.0, 100.0), (-15.0, 10.0), (-30.0, 100.0), (-400.0, 1.0), (0.0, 1.0)],
)
def test_mixture_gradients(deep, spread):
    "First and second derivatives are those of the direct evaluation"
    torch.manual_seed(1)
    loc = spread * torch.randn(6, 2, dtype=torch.float64)
    log_scale = torch.where(torch.arange(6)[:, None] < 3, deep, 0.0) + 0.1 * torch.randn(
        6, 2, dtype=torch.float64
    )
    logits = torch.randn(6, dtype=torch.float64)
    z = (
        torch.cat([loc, spread * torch.randn(4, 2, dtype=torch.float64)])
        if deep < -300
        else torch.cat(
            [
                loc + log_scale.exp() * torch.randn(6, 2, dtype=torch.float64),
                spread * torch.randn(4, 2, dtype=torch.float64),
            ]
        )
    )
    leaves = [t.requires_grad_() for t in (logits, loc, log_scale, z)]
    direct = lambda w, m, s, z: (
        (w.log_softmax(0) + DiagonalNormal(m, s).log_prob(z[:, None])).logsumexp(-1).sum()
    )
    found = []
    for density in direct, lambda w, m, s, z: NormalMixture(w, m, s).log_prob(z).sum():
        first = torch.autograd.grad(density(*leaves), leaves, create_graph=True)
        scales = [g.detach().abs().max().clamp_min(1) for g in first]
        blend = sum((g / scale).sin().sum() for g, scale in zip(first, scales))
        found.append([*first, *torch.autograd.grad(blend, leaves)] if deep > -300 else first)
    for mine, true in zip(found[1], found[0]):
        assert mine.isfinite().all()
        torch.testing.assert_close(
            mine, true, rtol=1e-6, atol=1e-7 * max(1.0, true.abs().max().item())
        )


def test_mixture_is_the_fast_one_where_that_is_exact():
    "Fewer numbers are kept for the way back than samples times components times latents"
    torch.manual_seed(0)
    leaves = [
        t.requires_grad_()
        for t in (torch.randn(50), 3 * torch.randn(50, 20), torch.randn(50, 20) - 3)
    ]
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.update({t.data_ptr(): t.numel()}) or t, lambda t: t
    ):
        NormalMixture(*leaves).log_prob(torch.randn(400, 20)).sum().backward()
    assert sum(kept.values()) < 400 * 50 * 20 / 4


@pytest.mark.parametrize('deep', [-5.0, -9.8, -20.0, -30.0])
def test_information_of_narrow_posteriors(deep):
    "Posteriors that do not overlap give log n nats of information about which row it is"
    torch.manual_seed(0)
    n = 298
    loc, log_scale = 3 * torch.randn(n, 8), deep + 0.1 * torch.randn(n, 8)
    q = DiagonalNormal(loc, log_scale)
    z = q.sample()
    information = (q.log_prob(z).double() - log_aggregate(z, [q]).double()).mean()
    # float32: the densities are up to 250 nats
    assert abs(information - math.log(n)) < 1e-4


# ------------------------------------------------------------------------------------ priors


def standard_normal_prior(dtype):
    return prior('standard_normal', 1).to(dtype), [(0.0, 0.0, 0.0)]


def mixture_prior(dtype, loc=(10.0, -3.0, 0.0), log_scale=(-20.0, -12.0, 0.5)):
    p = prior('mixture', 1, components=3).to(dtype)
    with torch.no_grad():
        p.loc.copy_(torch.tensor(loc)[:, None])
        p.log_scale.copy_(torch.tensor(log_scale)[:, None])
        p.logits.copy_(torch.tensor([0.0, 1.0, 2.0]))
    return p, list(zip(p.logits.tolist(), loc, p.log_scale.flatten().tolist()))


def vamp_prior(dtype):
    torch.manual_seed(0)
    encoder = Conditional(MLP((2,), [8]), (1,))
    with torch.no_grad():
        encoder.head.project.bias[1] -= 15
    p = VampPrior(encoder, components=4, spread=2.0).to(dtype)
    q = encoder(p.pseudo_inputs())
    return p, [
        (0.0, m, s) for m, s in zip(q.loc.flatten().tolist(), q.log_scale.flatten().tolist())
    ]


def trip_prior(dtype):
    torch.manual_seed(0)
    p = prior('TRIP', 1, components=3, rank=2).to(dtype)
    with torch.no_grad():
        p.log_scale.copy_(torch.tensor([[-15.0, -1.0, 1.0]]))
    traces = torch.nn.functional.softplus(p.cores)[0].diagonal(dim1=-2, dim2=-1).sum(-1)
    return p, list(zip(traces.log().tolist(), p.loc[0].tolist(), p.log_scale[0].tolist()))


made = {
    'standard_normal': standard_normal_prior,
    'mixture': mixture_prior,
    'vamp': vamp_prior,
    'TRIP': trip_prior,
    'flow': lambda dtype: (
        prior('flow', 1, transforms=2, widths=[8]).to(dtype),
        None,
    ),  # no reference but its own integral
    'ard': None,  # no density: its divergence is above
}
proper = [name for name, make in made.items() if make]


def prior_grid(components):
    "Values around every component, from very near to far, in float64"
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    if components is None:
        return z
    return torch.cat([m + math.exp(s) * z for _, m, s in components]).sort().values


@pytest.mark.parametrize('name', proper)
def test_prior_integrates_to_one_and_samples_follow(name):
    p, components = made[name](torch.float64)
    x = prior_grid(components)
    with torch.no_grad():
        below = shares(x, p().log_prob(x[:, None]))
        assert abs(below[-1] - 1) < 1e-4  # the trapezoidal rule
        torch.manual_seed(0)
        n = 4000
        draws = p().sample((n,)).flatten().sort().values
    share = below[torch.searchsorted(x, draws).clamp(max=len(x) - 1)]
    steps = torch.arange(n) / n
    assert (share - steps).abs().max() < 1.95 / n**0.5 + 1 / n  # Kolmogorov and Smirnov


@dtypes
@pytest.mark.parametrize('name', [n for n in proper if n != 'flow'])
def test_prior_agrees_with_mpmath(name, dtype):
    "Log densities and their gradients at the means of all components, near them and far from them"
    p, components = made[name](dtype)
    eps = torch.finfo(dtype).eps
    weights, means, scales = zip(*components)
    values = [
        rounded(m + z * math.exp(s), dtype) for m, s in zip(means, scales) for z in (0.0, 0.5, -2.0)
    ] + [0.0, 7.0]
    for x in values:
        leaf = torch.tensor([x], dtype=dtype, requires_grad=True)
        mine = p().log_prob(leaf)
        density = lambda x: exact_mixture(weights, [[m] for m in means], [[s] for s in scales], [x])
        true = density(mp.mpf(x))
        nearest = min(abs(x - m) * math.exp(-s) for m, s in zip(means, scales))
        assert (
            abs(mine.item() - float(true))
            <= 64 * eps * float(1 + abs(true) + max(map(abs, scales)) * (1 + nearest**2)) + 1e-6
        )
        slope = torch.autograd.grad(mine, leaf)[0].item()
        exact = float(
            (density(x + mp.mpf(10) ** -18) - density(x - mp.mpf(10) ** -18)) * mp.mpf(10) ** 18 / 2
        )
        assert abs(slope - exact) <= 1e-4 * abs(exact) + 1e-4
