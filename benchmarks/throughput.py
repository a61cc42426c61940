"""Images per second while one VAE trains, three ways.

  a  a bare PyTorch loop: floats in memory, one index per batch, functional maths, fused Adam;
     nothing is checked, counted or logged
  b  dlframe with its defaults: `Run(Optimization(VAE(...), images('MNIST')), ...)`, with its files,
     log, progress and checkpoints
  c  the classic way: torchvision's `ToTensor` per item, `DataLoader`, Lightning's automatic
     optimization, Adam, log and bar at every step

The same networks, batches of 128 in random order, float32, MNIST's 50,000 training rows. Timed, the
same in all three: from the end of step W to the end of step N, wall clock, everything in between
(reading, logging, the bar, ends of epochs) and nothing outside (imports, opening files, the last
checkpoint). Each number comes from a fresh process; the ways take turns (a b c a b c …), so that a
machine that slows down slows all three; a ratio is the median over rounds, each of which compares
neighbours in time.

  python benchmarks/throughput.py [--device cuda] [--threads 2] [--rounds 9] [--networks small]
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

# widths, latents, steps before the clock starts, timed steps of a and b; c is slow and gets a third
# of them
networks = {'small': ([256, 64], 8, 100, 800), 'large': ([1024, 128], 64, 30, 160)}
batch_size = 128


class Clock:
    "Note the time at the end of step `first` and of step `last`"

    def __init__(self, first, last, sync):
        self.first, self.last, self.sync, self.step = first, last, sync, 0

    # Lightning calls it as the module's `on_train_batch_end`
    def __call__(self, outputs=None, batch=None, batch_idx=None):
        self.step += 1
        if self.step in (self.first, self.last):
            self.sync()
            if self.step == self.first:
                self.start = time.perf_counter()
            else:
                self.seconds = time.perf_counter() - self.start


def elbo(nets, x):
    "The mean loss of a VAE, nats per sample, as it would be written by hand"
    import torch
    import torch.nn.functional as F

    loc, log_scale = nets[0](x).chunk(2, -1)
    z = loc + torch.randn_like(loc) * log_scale.exp()
    distortion = F.binary_cross_entropy_with_logits(nets[1](z), x, reduction='sum') / len(x)
    rate = (0.5 * ((2 * log_scale).exp() + loc * loc - 1) - log_scale).sum() / len(x)
    return distortion + rate, distortion, rate


def plain_networks(widths, z_dim):
    from torch import nn

    def mlp(*sizes):
        return nn.Sequential(
            *[layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.ReLU())][
                :-1
            ]
        )

    return nn.ModuleList([mlp(784, *widths, 2 * z_dim), mlp(z_dim, *widths[::-1], 784)])


def bare(widths, z_dim, device, clock):
    import torch

    from dlframe.image_sets import images

    data = images('MNIST')['train'].tensors['x'].flatten(1).float().div(255).to(device)
    nets = plain_networks(widths, z_dim).to(device)
    adam = torch.optim.Adam(nets.parameters(), lr=1e-3, fused=True)
    while True:
        for rows in torch.randperm(len(data), device=device).split(batch_size):
            loss, _, _ = elbo(nets, data.index_select(0, rows))
            adam.zero_grad()
            loss.backward()
            adam.step()
            clock()
            if clock.step == clock.last:
                return


def ours(widths, z_dim, device, clock):
    from dlframe.architectures import decoder, encoder
    from dlframe.image_sets import images
    from dlframe.optimization import Optimization
    from dlframe.priors import StandardNormalPrior
    from dlframe.run import Run
    from dlframe.vae import VAE

    shape = (1, 28, 28)
    vae = VAE(
        encoder('mlp', shape, z_dim, widths),
        decoder('mlp', z_dim, shape, widths[::-1]),
        StandardNormalPrior(z_dim),
    )
    optimization = Optimization(vae, images('MNIST'), batch_size=batch_size)
    # the module's own hook, which Lightning calls in any case
    optimization.on_train_batch_end = clock
    Run(optimization, train_for=f'{clock.last} steps', trainer={'accelerator': device}).fit()


def classic(widths, z_dim, device, clock):
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    from dlframe.devices import find_device

    class Classic(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.nets, self.on_train_batch_end = plain_networks(widths, z_dim), clock

        def training_step(self, batch, batch_idx):
            terms = dict(zip(('loss', 'distortion', 'rate'), elbo(self.nets, batch[0].flatten(1))))
            for name, value in terms.items():
                self.log(f'train/{name}', value, prog_bar=True)
            return terms['loss']

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    rows = Subset(MNIST(find_device().data_root, transform=ToTensor()), range(50000))
    trainer = pl.Trainer(
        accelerator=device,
        devices=1,
        max_steps=clock.last,
        max_epochs=-1,
        default_root_dir=tempfile.mkdtemp(dir=os.environ['RUNS_ROOT']),
    )
    trainer.fit(Classic(), DataLoader(rows, batch_size, shuffle=True, num_workers=0))


ways = {'a': bare, 'b': ours, 'c': classic}


def measure(way, network, device):
    "Train in this process; images per second"
    import torch

    widths, z_dim, first, steps = networks[network]
    last = first + (steps // 3 if way == 'c' else steps)
    clock = Clock(first, last, torch.cuda.synchronize if device == 'cuda' else lambda: None)
    torch.manual_seed(0)
    ways[way](widths, z_dim, device, clock)
    # the last batch of an epoch is smaller
    rows = sum(min(batch_size, 50000 - step % 391 * batch_size) for step in range(first, last))
    return rows / clock.seconds


def in_fresh_process(way, network, device, threads):
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                sys.executable,
                '-W',
                'ignore',
                __file__,
                '--measure',
                way,
                '--networks',
                network,
                '--device',
                device,
            ],
            capture_output=True,
            text=True,
            env={**os.environ, 'RUNS_ROOT': folder, 'OMP_NUM_THREADS': str(threads)},
        )
    if done.returncode:
        raise SystemExit(f'throughput: {way} on {network} failed\n{done.stderr}')
    return float(done.stdout.split()[-1])


def spread(numbers, form):
    "Median, lowest and highest, as text"
    return f'{median(numbers):{form}} ({min(numbers):{form}} to {max(numbers):{form}})'


def table(found, device, threads, rounds):
    import pytorch_lightning as pl
    import torch

    where = f'{torch.cuda.get_device_name()}, ' if device == 'cuda' else ''
    lines = [
        f'## {device}, {threads} thread{"s" * (threads > 1)}',
        '',
        f'{where}{os.cpu_count()} {platform.machine()} cores; Python '
        f'{platform.python_version()}, torch {torch.__version__}, Lightning {pl.__version__}; '
        f'medians of {rounds} rounds (lowest to highest)',
        '',
        '| VAE | a: bare loop | b: dlframe | c: classic | b/a | b/c |',
        '|---|---|---|---|---|---|',
    ]
    for name, rates in found.items():
        widths, z_dim, *_ = networks[name]
        vae = f'784-{"-".join(map(str, widths))}-z{z_dim}'
        ratios = [[b / x for b, x in zip(rates['b'], rates[way])] for way in ('a', 'c')]
        cells = [spread(rates[way], ',.0f') for way in ways] + [spread(r, '.2f') for r in ratios]
        lines.append(f'| {vae} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def save(text):
    "Put the table into throughput.md, in place of the one with the same heading"
    path = Path(__file__).with_suffix('.md')
    intro = (
        '# Images per second\n\nWritten by `make bench`; what is timed is said at the top of '
        '`throughput.py`.\n'
    )
    _, *old = (path.read_text() if path.exists() else intro).split('\n## ')
    tables = {t.partition('\n')[0]: f'## {t.rstrip()}\n' for t in old}
    tables[text.partition('\n')[0][3:]] = text
    path.write_text('\n'.join([intro, *tables.values()]))


if __name__ == '__main__':
    args = argparse.ArgumentParser(
        description='Images per second while one VAE trains: a bare loop, dlframe, the classic way'
    )
    args.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    args.add_argument(
        '--threads',
        type=int,
        default=1,
        help='of torch; 1 by default, because on a shared machine a second one is not always there',
    )
    args.add_argument('--rounds', type=int, default=5, help='fresh processes of each way')
    args.add_argument('--networks', nargs='+', choices=networks, default=list(networks))
    args.add_argument('--measure', choices=ways, help=argparse.SUPPRESS)
    args = args.parse_args()
    if args.measure:
        raise SystemExit(print(measure(args.measure, args.networks[0], args.device)))
    from dlframe.image_sets import images

    try:
        images('MNIST')['train']
    except (OSError, ValueError) as e:
        raise SystemExit(f'throughput: {e}') from None
    found = {name: {way: [] for way in ways} for name in args.networks}
    for i in range(args.rounds):
        for name, rates in found.items():
            for way in ways:
                rates[way].append(in_fresh_process(way, name, args.device, args.threads))
            print(
                f'round {i + 1}, {name}: '
                + ', '.join(f'{w} {r[-1]:,.0f}' for w, r in rates.items()),
                flush=True,
            )
    text = table(found, args.device, args.threads, args.rounds)
    save(text)
    print(f'\n{text}')
