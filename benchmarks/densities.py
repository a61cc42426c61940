"Two models that found wrong densities: grey MNIST with a continuous Bernoulli, digits with beta 0; `python benchmarks/densities.py mnist`, or `digits`"

import math
import sys
from types import SimpleNamespace

import torch
import torch.distributions as td

from dlframe.architectures import decoder, encoder
from dlframe.datasets import dataset
from dlframe.distributions import DiagonalNormal
from dlframe.prior_checks import AggregatePosterior
from dlframe.priors import StandardNormalPrior
from dlframe.vae import VAE


def train(data, likelihood, beta, steps, widths, z_dim, lr, batch_size=128):
    "A VAE of one hidden layer, trained with Adam"
    torch.manual_seed(0)
    reader = encoder('mlp', data.shape, z_dim=z_dim, widths=[widths])
    writer = decoder('mlp', z_dim, data.shape, widths=[widths], head=likelihood)
    vae, rows = VAE(reader, writer, StandardNormalPrior(z_dim), beta=beta), data['train']
    adam = torch.optim.Adam(vae.parameters(), lr=lr)
    for _ in range(steps):
        batch = data.prepare(rows.take(torch.randint(len(rows), (batch_size,))))
        adam.zero_grad()
        vae(batch)['loss'].mean().backward()
        adam.step()
    return vae


def mnist():
    data = dataset('MNIST')
    epoch = math.ceil(len(data['train']) / 128)
    vae = train(data, 'continuous_bernoulli', 1.0, 6 * epoch, 128, 20, 1e-3)
    with torch.no_grad():
        x = data.prepare(data['valid'][:1000])['x']
        p = vae.decode(vae.encode(x).rsample())
        logits = p.base_dist.logits
        old = td.ContinuousBernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
        wide = td.ContinuousBernoulli(logits=logits.double()).log_prob(x.double()).flatten(1).sum(1)
        exact = logits.double()
        height = (exact.abs() / -torch.expm1(-exact.abs())).log()
        exact = (exact * (x.double() - (exact >= 0).double()) + height).flatten(1).sum(1)
    beyond = [(logits.abs() > limit).float().mean().item() for limit in (16, 36)]
    print(
        f'logits beyond 16: {beyond[0]:.1%}, beyond 36: {beyond[1]:.1%}, largest {logits.abs().max():.0f}'
    )
    print(
        f'E log p(x|z): torch in float32 {old.mean():.1f}, torch in float64 {wide.mean():.1f},',
        end=' ',
    )
    print(f'now {p.log_prob(x).mean():.1f}, by the formula in float64 {exact.mean():.1f}')


def digits():
    data = dataset('digits')
    vae = train(data, 'bernoulli', 0.0, 6_000, 128, 8, 5e-3)
    look = SimpleNamespace(model=vae, data=data, device=torch.device('cpu'), counters={'steps': 0})
    found = AggregatePosterior(n=None)(look)
    with torch.no_grad():
        q = vae.encode(data.prepare(data['valid'][:])['x'])
    n, z = len(q.loc), q.sample()
    z64, loc, log_scale = z.double(), q.loc.double(), q.log_scale.double()
    precision = (-2 * log_scale).exp()
    constant = -(log_scale + 0.5 * loc * loc * precision + 0.5 * math.log(2 * math.pi)).sum(
        -1
    ) - math.log(n)
    written = (z64 * z64) @ (-0.5 * precision).T + z64 @ (loc * precision).T + constant  # as it was
    each = DiagonalNormal(loc, log_scale).log_prob(z64)
    print(
        f'{n} images, log-scales from {q.log_scale.max():.1f} to {q.log_scale.min():.1f}, log n = {math.log(n):.3f}'
    )
    print(
        f"information: written out {(each - written.logsumexp(-1)).mean():.3f}, now {found['information'].value:.3f}"
    )


if __name__ == '__main__':
    {'mnist': mnist, 'digits': digits}[sys.argv[1]]()
