"The settings of published recipes, from the name to a run that is loaded, resumed and rerun"

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import seed_everything

from dlframe.architectures import MLP, Conditional, decoder, discriminator, encoder, predictor
from dlframe.datasets import dataset
from dlframe.devices import find_device
from dlframe.gan import GAN
from dlframe.image_sets import Digits
from dlframe.loading import load
from dlframe.optimization import Optimization
from dlframe.priors import StandardNormalPrior, VampPrior
from dlframe.reruns import rerun
from dlframe.run import Run
from dlframe.specs import build, spec
from dlframe.vae import VAE

LIMITS = {'log_scale_limits': (-3, 1)}
FLOOR = {'least_probability': 1e-5}


def small_vae(init=None, of_encoder=None, of_decoder=None):
    seed_everything(3, verbose=False)
    q = encoder('mlp', (1, 8, 8), 2, [8], activation='GLU', init=init, **(of_encoder or {}))
    p = decoder('mlp', 2, (1, 8, 8), [8], activation='GLU', init=init, **(of_decoder or {}))
    return VAE(q, p, VampPrior(q, 3, mean=0.05, limits=(0, 1)))


def weights(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def same(model, other):
    torch.testing.assert_close(weights(model), weights(other), rtol=0, atol=0)


def differ(model, other):
    return any((a != b).any() for a, b in zip(weights(model).values(), weights(other).values()))


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    "A run with all settings of a recipe, on pixels that are drawn anew in each batch"
    monkeypatch.setenv('RUNS_ROOT', str(tmp_path))

    def fit(name, train_for):
        model = small_vae('he', LIMITS, FLOOR)
        optimization = Optimization(
            model,
            Digits(binarize='dynamic'),
            'AdamNormGrad',
            5e-4,
            100,
            output_bias={'decoder': 'x'},
            groups={'prior': {'lr': 1e-3}},
        )
        return Run(optimization, train_for, name=name, seed=3).fit()

    return fit


def test_a_rerun_has_the_numbers_of_the_run(recipe):
    run = recipe('first', '20 steps')
    manifest = json.loads((run.folder / 'manifest.json').read_text())
    again = rerun(manifest, {'run.name': 'again'})
    same(run.optimization.model, again.optimization.model)
    same(run.optimization.model, load(run.folder).model)
    without = rerun(manifest, {'run.name': 'without', 'optimization.output_bias': None})
    assert differ(run.optimization.model, without.optimization.model)


def test_a_resumed_run_has_the_numbers_of_an_uninterrupted_one(recipe):
    whole, part = recipe('whole', '20 steps'), recipe('part', '7 steps')
    assert differ(whole.optimization.model, part.optimization.model)
    same(Run.resume(part.folder, '20 steps').optimization.model, whole.optimization.model)


def test_weights_are_loaded_without_the_data(recipe, monkeypatch):
    run = recipe('first', '2 steps')
    monkeypatch.setattr(Digits, 'open', lambda self, name: pytest.fail('the data were read'))
    same(load(run.folder).model, run.optimization.model)


NEW = 'init', 'log_scale_limits', 'least_probability', 'output_bias'


def without_new(s):
    "A specification as an earlier release wrote it"
    if isinstance(s, list):
        return [without_new(v) for v in s]
    return {k: without_new(v) for k, v in s.items() if k not in NEW} if isinstance(s, dict) else s


def test_a_manifest_of_an_earlier_release_builds_the_same_model():
    model = small_vae()
    recorded = spec(Optimization(model, Digits()))
    earlier = without_new(recorded)
    assert recorded != earlier
    seed_everything(3, verbose=False)
    rebuilt = build(earlier)
    same(rebuilt.model, model)
    now = spec(rebuilt)
    assert json.dumps(without_new(now)) == json.dumps(earlier)

    def new_values(s):
        children = s.values() if isinstance(s, dict) else s if isinstance(s, list) else []
        own = [s[k] for k in NEW if k in s] if isinstance(s, dict) else []
        return own + [v for child in children for v in new_values(child)]

    assert set(new_values(now)) == {None}  # so a trial of an earlier release is recognised


@pytest.mark.parametrize(
    'make',
    [
        lambda **o: encoder('mlp', (1, 8, 8), 2, [8], **o),
        lambda **o: encoder('conv', (1, 8, 8), 2, [4, 6], 'laplace', **o),
        lambda **o: decoder('mlp', 2, (1, 8, 8), [8], activation='GLU', **o),
        lambda **o: decoder('deconv', 2, (1, 8, 8), [6, 4], 'beta', **o),
        lambda **o: predictor('conv', (1, 8, 8), classes=3, widths=[4], **o),
        lambda **o: predictor('mlp', (4,), attributes=3, **o),
        lambda **o: predictor('mlp', (4,), dim=2, widths=[], **o),
        lambda **o: discriminator('mlp', (1, 8, 8), [8], **o),
        lambda **o: Conditional(MLP((4,), [], **o), (2,)),
    ],
)
def test_every_network_is_initialised_by_name(make):
    def made(**options):
        torch.manual_seed(0)
        return make(**options)

    same(made(init='torch'), made())
    drawn = {init: made(init=init) for init in ('glorot', 'he')}
    for init, net in drawn.items():
        assert all((p == 0).all() for n, p in net.named_parameters() if n.endswith('bias')), init
        assert all(
            (p != q).all()
            for (n, p), q in zip(net.named_parameters(), made().parameters())
            if n.endswith('weight')
        )
        torch.manual_seed(0)
        same(build(json.loads(json.dumps(spec(net)))), net)
    for name, p in drawn[
        'glorot'
        # of which no weight is beyond what one input and one output allow
    ].named_parameters():
        assert p.abs().max() <= 3**0.5, name


def test_output_biases_of_an_adversarial_model():
    seed_everything(0, verbose=False)
    gan = GAN(
        decoder('mlp', 2, (1, 8, 8), [8]),
        discriminator('mlp', (1, 8, 8), [8]),
        StandardNormalPrior(2),
    )
    data = Digits()
    Optimization(gan, data, output_bias={'generator': 'x'})
    mean = (data['train'].tensors['x'].double() / 255).mean(0)
    started = gan.generator.head(torch.zeros(8)).mean.double()
    # rounding of float32
    torch.testing.assert_close(started, mean.clamp(0.001, 0.999), rtol=0, atol=1e-6)


real = Path(find_device().data_root) / 'binarized_mnist.npz'


@pytest.mark.skipif(
    not real.is_file(),
    reason='DATA_ROOT holds no binarized_mnist.npz, the fixed binarisation of MNIST',
)
def test_the_fixed_binarisation():
    data = dataset('binarized_MNIST')
    assert {name: len(data[name]) for name in data.splits} == {
        'train': 50_000,
        'valid': 10_000,
        'test': 10_000,
    }
    batch = data.prepare(data['test'].take(torch.arange(1000)))
    assert list(batch) == ['x'] and batch['x'].unique().tolist() == [0.0, 1.0]
    packed = np.load(real)['test'][999]
    assert ''.join(str(int(pixel)) for pixel in batch['x'][999].flatten()) == ''.join(
        f'{byte:08b}' for byte in packed
    )
    rows = batch['x'].mean((0, 1, 3))
    # digits are upright and in the middle
    assert rows[:3].max() < 0.01 < 0.2 < rows[10:18].min()
