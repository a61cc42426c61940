"""Models that found wrong densities: `python benchmarks/densities.py CASE`

clamped: a continuous Bernoulli on grey MNIST, trained with torch's density
mnist: the same, trained with the library's
digits: an autoencoder with noise, beta 0, on digits
"""

import math
import sys
from types import SimpleNamespace

import torch
import torch.distributions as td

from dlframe.architectures import decoder, encoder
from dlframe.datasets import dataset
from dlframe.distributions import ContinuousBernoulli, ContinuousBernoulliHead, DiagonalNormal
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


class Clamped(ContinuousBernoulliHead):
    "With torch's density, whose constant comes from clamped probabilities"

    def forward(self, h):
        logits = self.unpack(h)[0]
        return td.Independent(td.ContinuousBernoulli(logits=logits), len(self.event_shape))


def mnist(likelihood='continuous_bernoulli'):
    data = dataset('MNIST')
    epoch = math.ceil(len(data['train']) / 128)
    vae = train(data, likelihood, 1.0, 6 * epoch, 128, 20, 1e-3)
    with torch.no_grad():
        x = data.prepare(data['valid'][:1000])['x']
        logits = vae.decode(vae.encode(x).rsample()).base_dist.logits
    beyond = [(logits.abs() > limit).float().mean().item() for limit in (16, 36)]
    print(f'logits beyond 16: {beyond[0]:.1%}, beyond 36: {beyond[1]:.1%}')
    made = {
        'torch in float32': td.ContinuousBernoulli(logits=logits),
        'torch in float64': td.ContinuousBernoulli(logits=logits.double()),
        'now in float32': ContinuousBernoulli(logits),
        'now in float64': ContinuousBernoulli(logits.double()),
    }
    for name, p in made.items():
        nats = p.log_prob(x.to(p.logits.dtype)).flatten(1).sum(1).mean()
        print(f'E log p(x|z), {name}: {nats:.1f}')


def digits():
    data = dataset('digits')
    vae = train(data, 'bernoulli', 0.0, 12_000, 128, 8, 1e-2)
    look = SimpleNamespace(model=vae, data=data, device=torch.device('cpu'), counters={'steps': 0})
    found = AggregatePosterior(n=None)(look)
    with torch.no_grad():
        q = vae.encode(data.prepare(data['valid'][:])['x'])
    n, z = len(q.loc), q.sample()
    z64, loc, log_scale = z.double(), q.loc.double(), q.log_scale.double()
    precision = (-2 * log_scale).exp()
    constants = log_scale + 0.5 * loc * loc * precision + 0.5 * math.log(2 * math.pi)
    weights = torch.cat([-0.5 * precision, loc * precision], -1)
    written = torch.cat([z64 * z64, z64], -1) @ weights.T - constants.sum(-1) - math.log(n)
    each = DiagonalNormal(loc, log_scale).log_prob(z64)
    before, now = (each - written.logsumexp(-1)).mean(), found['information'].value
    print(f'{n} images, log-scales from {log_scale.max():.1f} to {log_scale.min():.1f}')
    print(f'information: written out {before:.3f}, now {now:.3f}; log n = {math.log(n):.3f}')


if __name__ == '__main__':
    cases = {'mnist': mnist, 'clamped': lambda: mnist(Clamped), 'digits': digits}
    cases[sys.argv[1]]()
