"""Faces from files to a model: what a small network learns from the drawn ones, and a run that
reads them as it goes
"""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from dlframe.architectures import decoder, encoder
from dlframe.callbacks import Evaluate
from dlframe.data import Loader
from dlframe.evaluation import Terms
from dlframe.faces import CelebA, synthetic_celeba
from dlframe.loading import load
from dlframe.optimization import Optimization
from dlframe.priors import prior
from dlframe.run import Run
from dlframe.vae import VAE


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    synthetic_celeba(folder, 1500)
    return str(folder)


def network(outputs):
    "Three convolutions; places stay places, so that landmarks can be read off"
    layers = [
        nn.Conv2d(3, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, outputs))


def learned(data, outputs, loss, epochs):
    "Predictions for `test`, and what was to be predicted"
    torch.manual_seed(0)
    net = network(outputs)
    adam = torch.optim.Adam(net.parameters(), 2e-3, fused=True)
    batches = Loader(data['train'], 50, shuffle=True)
    for _ in range(epochs):
        for batch in map(data.prepare, batches):
            adam.zero_grad()
            loss(net(batch['x']), batch['y']).backward()
            adam.step()
    test = data.prepare(data['test'].take(torch.arange(len(data['test']))))
    with torch.no_grad():
        return net(test['x']), test['y']


def test_smiles_are_learned(root):
    logits, y = learned(
        CelebA('Smiling', pixels=32, root=root, in_memory=True), 2, nn.functional.cross_entropy, 12
    )
    assert 0.3 < y.float().mean() < 0.7
    assert (logits.argmax(1) == y).float().mean() > 0.9


def test_landmarks_are_learned(root):
    found, y = learned(
        CelebA('landmarks', pixels=32, root=root, in_memory=True), 10, nn.functional.mse_loss, 35
    )
    # a mean that knows nothing of the picture leaves all of the variance
    assert ((found - y) ** 2).mean() < 0.3 * y.var(0).mean()


def trained(root, name):
    "A short run on faces that are read as they are needed, and mirrored"
    pl.seed_everything(0, verbose=False)
    data = CelebA('Smiling', pixels=16, flip=True, root=root)
    model = VAE(
        encoder('mlp', data.shape, 4, [16]),
        decoder('mlp', 4, data.shape, [16]),
        prior('standard_normal', 4),
    )
    return Run(
        Optimization(model, data, lr=3e-3),
        '2 epochs',
        name=name,
        evaluations=[Evaluate(Terms('valid'), '1 epoch')],
    ).fit()


def test_a_run_on_faces_and_its_repetition(root, tmp_path, monkeypatch):
    monkeypatch.setenv('RUNS_ROOT', str(tmp_path))
    first, second = [load(trained(root, name).folder) for name in ('first', 'second')]
    losses = first.metrics['valid/loss'].dropna()
    assert losses.iloc[-1] < losses.iloc[0]
    assert losses.tolist() == second.metrics['valid/loss'].dropna().tolist()
    assert first.manifest['data'] == {
        'cls': 'dlframe.faces.CelebA',
        'target': 'Smiling',
        'pixels': 16,
        'crop': 178,
        'flip': True,
        'root': root,
        'in_memory': False,
    }
    for a, b in zip(first.model.parameters(), second.model.parameters()):
        assert torch.equal(a, b)
