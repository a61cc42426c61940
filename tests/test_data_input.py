"""Data keep their meaning: pixels, masks, labels, pictures of any mode, folders of splits"""

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dlframe.architectures import decoder, encoder, predictor
from dlframe.callbacks import Evaluate
from dlframe.classifier import Classifier
from dlframe.data import Data, Items
from dlframe.datasets import dataset
from dlframe.evaluation import Terms
from dlframe.image_sets import Digits
from dlframe.loggers import read_metrics
from dlframe.optimization import Optimization
from dlframe.predictions import Accuracy
from dlframe.priors import prior
from dlframe.run import Run
from dlframe.vae import VAE
from dlframe.validation import InvalidType, InvalidValue, MissingFile, Refusal, UnknownName

BITS = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3
LABELS = torch.arange(200) % 3


TENSORS = {}


class Own(Data):
    "The tensors of this name, whose bytes are declared or not"

    def __init__(self, name, white_level=None):
        self.name = name
        if white_level is not None:
            self.white_level = white_level

    def open(self, name):
        return TENSORS[self.name]


class ReadByRow(Own):
    def open(self, name):
        tensors = TENSORS[self.name]
        return Items(lambda i: {k: v[i].numpy() for k, v in tensors.items()}, 200)


def with_tensors(base, white_level=None, **tensors):
    name = f'set{len(TENSORS)}'
    TENSORS[name] = tensors
    return base(name, white_level)


def vae():
    return VAE(
        encoder('mlp', (1, 8, 8), 4, [16]),
        decoder('mlp', 4, (1, 8, 8), [16]),
        prior('standard_normal', 4),
    )


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.setenv('RUNS_ROOT', str(tmp_path / 'runs'))

    def fit(data, model=vae, evaluator=None, metric='valid/loss'):
        "The last value of a metric after a few steps"
        torch.manual_seed(0)
        name = f'run{len(list((tmp_path / "runs").glob("*")))}'
        run = Run(
            Optimization(model(), data, lr=0.01),
            '5 steps',
            [Evaluate(evaluator or Terms('valid'))],
            name=name,
        )
        run.fit()
        return read_metrics(run.folder)[metric].dropna().iloc[-1]

    fit.folder = tmp_path / 'runs'
    return fit


def prepared(data, split='train'):
    rows = data[split]
    return data.prepare(rows.take(torch.arange(len(rows))))


# Whole numbers


@pytest.mark.parametrize('base', [Own, ReadByRow])
@pytest.mark.parametrize('white', [1, 15, 255])
def test_undeclared_bytes_are_refused_before_training(trained, base, white):
    x = BITS.byte() * white
    with pytest.raises(
        InvalidValue,
        match=rf"`white_level` of .* from 0 to {white} in .*add `white_level = \{{'x': 255\}}`",
    ):
        trained(with_tensors(base, x=x))
    assert not trained.folder.exists()


def test_one_picture_in_any_spelling_trains_on_the_same_numbers(trained):
    spellings = {
        'true and false': with_tensors(Own, x=BITS),
        'floats': with_tensors(Own, x=BITS.float()),
        'zeros and ones': with_tensors(Own, {'x': 1}, x=BITS.byte()),
        'levels': with_tensors(Own, {'x': 15}, x=BITS.byte() * 15),
        'pixels': with_tensors(Own, {'x': 255}, x=BITS.byte() * 255),
        'pixels, row by row': with_tensors(ReadByRow, {'x': 255}, x=BITS.byte() * 255),
        '16 bits': with_tensors(Own, {'x': 65535}, x=BITS.int() * 65535),
    }
    losses = {k: trained(data) for k, data in spellings.items()}
    assert len(losses) == 7 and len(set(losses.values())) == 1, losses
    # nats of 64 pixels, of which three in ten are white
    at_best, untrained = 39.1, 64 * np.log(2)
    assert at_best < losses['floats'] < untrained


def test_zeros_and_ones_that_are_declared_as_pixels_get_a_warning():
    for base in Own, ReadByRow:
        with pytest.warns(
            UserWarning, match="'x' of .* is nearly black, with whole numbers from 0 to 1 in"
        ):
            prepared(with_tensors(base, {'x': 255}, x=BITS.byte()))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert prepared(with_tensors(Own, {'x': 255}, x=BITS.byte() * 200))[
            'x'
        ].max() == torch.tensor(200.0).div(255)
        assert prepared(Digits())['x'].max() == 1


@pytest.mark.parametrize(
    'white_level, error',
    [
        ({'x': 0}, InvalidValue),
        (255, TypeError),
        ({'x': 100}, InvalidValue),
        ({'x': 'white'}, TypeError),
    ],
)
def test_wrong_declarations(white_level, error):
    with pytest.raises(error, match='white_level'):
        prepared(with_tensors(Own, white_level, x=BITS.byte() * 255))


integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@pytest.mark.parametrize('dtype', [*integers, torch.bool])
@pytest.mark.parametrize('base', [Own, ReadByRow])
def test_labels_of_any_type_are_int64(dtype, base):
    y = (LABELS % 2 if dtype is torch.bool else LABELS).to(dtype)
    batch = prepared(with_tensors(base, x=BITS.float(), y=y))
    assert batch['y'].dtype is torch.int64
    assert batch['y'].tolist() == y.long().tolist()


def test_labels_as_bytes_train_a_classifier(trained):
    x = torch.eye(3)[LABELS].repeat(1, 22)[:, :64].view(-1, 1, 8, 8)

    def classifier():
        return Classifier(predictor('mlp', (1, 8, 8), classes=3, widths=[16]))

    data = with_tensors(Own, x=x, y=LABELS.byte())
    # by chance a third
    assert trained(data, classifier, Accuracy(), 'valid/accuracy') > 0.5


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.bool])
def test_attributes_keep_their_values(trained, dtype):
    attributes = torch.stack([LABELS == 0, LABELS != 0, LABELS == 2], 1).to(dtype)
    data = with_tensors(Own, x=BITS.float(), y=attributes)
    assert prepared(data)['y'].tolist() == attributes.float().tolist()

    def model():
        return Classifier(predictor('mlp', (1, 8, 8), attributes=3, widths=[16]))

    assert 0 <= trained(data, model, Accuracy(), 'valid/accuracy') <= 1


def test_only_x_of_image_sets_is_divided():
    "Masks, labels, attributes and points beside the pixels of an image set"

    class More(Digits):
        def open(self, name):
            n = len(super().open(name)['y'])
            return {
                **super().open(name),
                'mask': torch.ones(n, 1, 8, 8, dtype=torch.uint8),
                'label': torch.full((n,), 2, dtype=torch.uint8),
                'points': torch.full((n, 10), 7, dtype=torch.uint8),
                'valid': torch.ones(n, dtype=torch.bool),
            }

    with pytest.warns(
        UserWarning,
        match="'points' of More is not divided: split 'train' holds whole numbers from 7 to 7",
    ):
        batch = prepared(More())
    assert {k: batch[k].unique().tolist() for k in ('mask', 'label', 'points', 'valid')} == {
        'mask': [1],
        'label': [2],
        'points': [7],
        'valid': [True],
    }
    assert torch.equal(batch['x'], prepared(Digits())['x'])


# Pictures

RAMP = np.arange(256).reshape(16, 16)
COLOURS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def grey(array):
    return np.repeat(array[None], 3, axis=0)


accepted = {
    '1.png': (RAMP > 99, grey((RAMP > 99) * 255)),
    'L.png': (RAMP.astype(np.uint8), grey(RAMP)),
    'I;16.png': ((RAMP * 257).astype(np.uint16), grey(RAMP)),
    'I;16.tif': ((RAMP * 257).astype(np.uint16), grey(RAMP)),
    'I;16B.tif': ((RAMP * 257).astype('>u2'), grey(RAMP)),
    'RGB.png': (COLOURS, COLOURS.transpose(2, 0, 1)),
    'RGBA.png': (
        np.dstack([COLOURS, np.full((16, 16), 255, np.uint8)]),
        COLOURS.transpose(2, 0, 1),
    ),
}


def folder_of(root, picture, name, n=6):
    (root / 'a').mkdir(parents=True)
    for i in range(n):
        picture.save(root / 'a' / f'{i}-{name}')
    return dataset('ImageFolder', root=str(root))


@pytest.mark.parametrize('name', accepted)
def test_each_mode_by_its_range(name, tmp_path):
    array, expected = accepted[name]
    x = folder_of(tmp_path, Image.fromarray(array), name)['train'].tensors['x']
    assert x.shape == (4, 3, 16, 16) and x.dtype is torch.uint8
    assert all(np.array_equal(picture, expected) for picture in x.numpy())


def test_sixteen_bits_in_between(tmp_path):
    "Every value of 16 bits, to the nearest byte"
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    x = folder_of(tmp_path, Image.fromarray(values), 'all.png')['train'].tensors['x'][0, 0]
    assert x.tolist() == np.rint(values / 257).tolist()
    assert (x == 255).float().mean() < 0.01


def test_palette_gives_its_colours(tmp_path):
    picture = Image.fromarray(COLOURS).quantize(7)
    x = folder_of(tmp_path, picture, 'palette.png')['train'].tensors['x'][0]
    assert x.tolist() == np.array(picture.convert('RGB')).transpose(2, 0, 1).tolist()


def png(values):
    "A PNG of 16 bits, which Pillow does not write in colour"
    height, width, channels = values.shape

    def chunk(kind, content):
        return (
            struct.pack('>I', len(content))
            + kind
            + content
            + struct.pack('>I', zlib.crc32(kind + content))
        )

    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
    header = struct.pack('>2I5B', width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + chunk(b'IDAT', zlib.compress(rows))
        + chunk(b'IEND', b'')
    )


def pgm(values, white):
    return b'P5 16 16 %d\n' % white + values.astype('>u2').tobytes()


@pytest.mark.parametrize(
    'name, content, expected',
    [
        ('colour.png', png(COLOURS.astype(int) * 257), COLOURS.transpose(2, 0, 1)),
        ('grey.png', png(RAMP[..., None] * 257), grey(RAMP)),
        ('wide.pgm', pgm(RAMP * 257, 65535), grey(RAMP)),
        ('twelve.pgm', pgm(RAMP * 16, 255 * 16), grey(RAMP)),
    ],
)
def test_sixteen_bits_in_other_files(name, content, expected, tmp_path):
    (tmp_path / 'a').mkdir()
    for i in range(6):
        (tmp_path / 'a' / f'{i}{name}').write_bytes(content)
    x = dataset('ImageFolder', root=str(tmp_path))['train'].tensors['x']
    assert all(np.array_equal(picture, expected) for picture in x.numpy())


def test_several_pictures_in_a_file(tmp_path):
    (tmp_path / 'a').mkdir()
    frames = [Image.fromarray(RAMP.astype(np.uint8))] * 3
    frames[0].save(tmp_path / 'a/stack.tif', save_all=True, append_images=frames[1:])
    with pytest.raises(InvalidValue, match='stack.tif must hold one picture, got 3'):
        dataset('ImageFolder', root=str(tmp_path))['train']


def see_through():
    palette = Image.fromarray(COLOURS).quantize(7)
    palette.info['transparency'] = 3
    return palette


refused = {
    'F.tif': (
        lambda: Image.fromarray((RAMP / 255).astype(np.float32)),
        'mode F has no largest value',
    ),
    'I.tif': (
        lambda: Image.fromarray((RAMP * 999).astype(np.int32)),
        'mode I has no largest value',
    ),
    'LAB.tif': (lambda: Image.new('LAB', (16, 16)), 'that can be converted, got LAB'),
    'RGBA.png': (
        lambda: Image.new('RGBA', (16, 16), (9, 9, 9, 100)),
        'must not have transparent pixels, got mode RGBA',
    ),
    'LA.png': (
        lambda: Image.new('LA', (16, 16), (9, 0)),
        'must not have transparent pixels, got mode LA',
    ),
    'P.png': (see_through, 'must not have transparent pixels, got mode P'),
}


@pytest.mark.parametrize('name', refused)
def test_modes_that_cannot_be(name, tmp_path):
    picture, said = refused[name]
    with pytest.raises(InvalidValue, match=said) as e:
        folder_of(tmp_path, picture(), name)['train']
    assert f'0-{name}' in str(e.value)


def test_mixed_modes_in_any_order(tmp_path):
    "Grey pictures of both depths beside colours, whichever is first"
    by_name = {}
    for first, second in ('a', 'b'), ('b', 'a'):
        root = tmp_path / first
        (root / 'class').mkdir(parents=True)
        for i in range(6):
            Image.fromarray(COLOURS).save(root / f'class/{first}{i}.png')
            Image.fromarray((RAMP * 257).astype(np.uint16)).save(root / f'class/{second}{i}.png')
        x = dataset('ImageFolder', root=str(root))['train+valid+test'].tensors['x'].numpy()
        by_name[first] = sorted({picture.tobytes() for picture in x})
    assert (
        by_name['a']
        == by_name['b']
        == sorted([COLOURS.transpose(2, 0, 1).tobytes(), grey(RAMP).astype(np.uint8).tobytes()])
    )


def test_white_of_folders_by_an_option(tmp_path):
    twelve = folder_of(
        tmp_path / 'twelve',
        Image.fromarray(np.rint(RAMP * (4095 / 255)).astype(np.uint16)),
        'x.png',
    )
    with pytest.warns(
        UserWarning, match="nearly black, with whole numbers from 0 to 16 in split 'train'"
    ):
        prepared(twelve)
    ones = folder_of(tmp_path / 'ones', Image.fromarray((RAMP > 99).astype(np.uint8)), 'x.png')
    with pytest.warns(
        UserWarning, match="nearly black, with whole numbers from 0 to 1 in split 'train'"
    ):
        prepared(ones)
    for name, white, expected in ('twelve', 4095, RAMP), ('ones', 1, (RAMP > 99) * 255):
        x = dataset('ImageFolder', root=str(tmp_path / name), white_level=white)['train'].tensors[
            'x'
        ]
        assert np.array_equal(x[0, 0], expected)
    with pytest.raises(InvalidValue, match='must have values from 0 to the white level 4000'):
        dataset('ImageFolder', root=str(tmp_path / 'twelve'), white_level=4000)['train']
    with pytest.raises(InvalidValue, match='`white_level` must be at most 255 for bytes, got 4095'):
        dataset('ImageFolder', root=str(tmp_path / 'ones'), white_level=4095)['train']
    with pytest.raises(InvalidType, match='`split_folders` must be True or False'):
        dataset('ImageFolder', root=str(tmp_path), split_folders='no')


# Folders


def layout(root, *folders, n=6):
    "Pictures whose grey level is the number of their folder, times ten"
    for k, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for i in range(n):
            Image.new('L', (4, 4), 100 + 10 * k).save(root / folder / f'{i}.png')
    return dataset('ImageFolder', root=str(root))


def found(data, split):
    "Which folders, under which labels"
    rows = data[split].tensors
    return {(int(x) - 100) // 10: int(y) for x, y in zip(rows['x'][:, 0, 0, 0], rows['y'])}


@pytest.mark.parametrize(
    'train, valid, test',
    [
        ('train', 'valid', 'test'),
        ('Train', 'VAL', 'Test'),
        ('TRAINING', 'Validation', 'testing'),
        ('train_set', 'dev', 'test-set'),
        ('train2017', 'val2017', 'test2017'),
    ],
)
def test_splits_by_their_names(train, valid, test, tmp_path):
    data = layout(
        tmp_path,
        f'{train}/ant',
        f'{train}/bee',
        f'{train}/cat',
        f'{valid}/bee',
        f'{test}/ant',
        f'{test}/cat',
    )
    # numbers are those of training
    assert [found(data, s) for s in data.splits] == [
        {0: 0, 1: 1, 2: 2},
        {3: 1},
        {4: 0, 5: 2},
    ]
    assert [len(data[s]) for s in data.splits] == [18, 6, 12]


def test_validation_is_held_out_of_each_class(tmp_path):
    data = layout(tmp_path, 'train/ant', 'train/bee', 'test/ant', 'test/bee', n=12)
    assert [found(data, s) for s in data.splits] == [{0: 0, 1: 1}, {0: 0, 1: 1}, {2: 0, 3: 1}]
    assert [data[s].tensors['y'].bincount().tolist() for s in data.splits] == [
        [10, 10],
        [2, 2],
        [12, 12],
    ]


def test_sets_sorted_by_class_validate_on_each_class(tmp_path):
    "Imagenette says which rows are for testing, and lists the others class by class"
    classes = 'n01440764', 'n02102040'
    for split in 'train', 'val':
        for k, name in enumerate(classes):
            (tmp_path / 'imagenette2' / split / name).mkdir(parents=True)
            for i in range(12):
                Image.new('RGB', (4, 4), (50 * k, 0, i)).save(
                    tmp_path / 'imagenette2' / split / name / f'{i}.JPEG'
                )
    data = dataset('Imagenette', root=str(tmp_path))
    assert [data[s].tensors['y'].bincount().tolist() for s in data.splits] == [
        [10, 10],
        [2, 2],
        [12, 12],
    ]


@pytest.mark.parametrize(
    'folders, error, said',
    [
        (['cat', 'dog', 'test'], InvalidValue, 'the splits test and cat, dog'),
        (['train/cat', 'test/cat', 'masks'], InvalidValue, 'the splits test, train and masks'),
        (
            ['cat/train', 'cat/test', 'dog/train', 'dog/test'],
            InvalidValue,
            'splits as its outermost folders',
        ),
        (['faces/train/cat', 'faces/test/cat'], InvalidValue, 'splits as its outermost folders'),
        (['seg_train/cat', 'seg_test/cat'], InvalidValue, 'splits named train, valid and test'),
        (['train/cat', 'val/cat', 'valid/cat'], InvalidValue, 'one folder for each split'),
        (['test/cat', 'valid/cat'], InvalidValue, 'must have a folder train'),
        (['train', 'test'], InvalidValue, 'a folder for each class in each split'),
        (['train/cat', 'test'], InvalidValue, 'a folder for each class in each split'),
        (
            ['train/train/cat', 'train/test/cat'],
            InvalidValue,
            'a folder for each class in each split',
        ),
        (
            ['train/cat', 'test/Cat'],
            UnknownName,
            "must be one of 'cat', got 'Cat'; did you mean 'cat'",
        ),
    ],
)
def test_contradictory_folders(folders, error, said, tmp_path):
    data = layout(tmp_path, *folders)
    for split in data.splits:
        with pytest.raises(error, match=said):
            data[split]


def test_folders_that_are_taken(tmp_path):
    "Names that only look like splits, classes named as splits, empty classes, a missing split"
    assert found(layout(tmp_path / 'words', 'testament', 'trainers'), 'train') == {0: 0, 1: 1}
    layout(tmp_path / 'vehicles', 'bus', 'train')
    assert found(
        dataset('ImageFolder', root=str(tmp_path / 'vehicles'), split_folders=False), 'train'
    ) == {0: 0, 1: 1}
    inner = layout(tmp_path / 'inner', 'train/bus', 'train/train', 'test/train')
    assert (found(inner, 'train'), found(inner, 'test')) == ({0: 0, 1: 1}, {2: 1})
    empty = layout(tmp_path / 'empty', 'train/ant', 'train/bee', 'test/bee')
    (tmp_path / 'empty/test/ant').mkdir()
    (tmp_path / 'empty/.hidden').mkdir()
    assert found(empty, 'test') == {2: 1}
    two = layout(tmp_path / 'two', 'train/ant', 'val/ant')
    assert (len(two['train']), len(two['valid'])) == (6, 6)
    with pytest.raises(MissingFile, match='`split` must be one of train, valid'):
        two['test']


def test_a_folder_of_classes_is_read_as_before(tmp_path):
    "Rows and labels of earlier releases: torchvision's own reading, divided as the digits are"
    from sklearn.model_selection import train_test_split
    from torchvision.datasets import ImageFolder

    rng = np.random.default_rng(0)
    for folder in 'a', 'b':
        (tmp_path / folder).mkdir()
        for i in range(15):
            mode = ('RGB', 'L', 'P')[i % 3]
            Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).convert(mode).save(
                tmp_path / folder / f'{i:02d}.png'
            )
    pictures, labels = zip(*ImageFolder(tmp_path))
    x, y = np.stack([np.array(p).transpose(2, 0, 1) for p in pictures]), np.array(labels)
    rest, test = train_test_split(np.arange(30), test_size=5, random_state=0, stratify=y)
    train, valid = train_test_split(rest, test_size=5, random_state=0, stratify=y[rest])
    data = dataset('ImageFolder', root=str(tmp_path))
    for split, rows in ('train', train), ('valid', valid), ('test', test):
        assert np.array_equal(data[split].tensors['x'], x[np.sort(rows)])
        assert np.array_equal(data[split].tensors['y'], y[np.sort(rows)])


def test_options_cannot_make_splits_equal(tmp_path):
    from dlframe.image_sets import TorchvisionImages

    for name, option in (
        ('SVHN', {'split': 'extra'}),
        ('MNIST', {'train': True}),
        ('QMNIST', {'what': 'test'}),
    ):
        with pytest.raises(InvalidValue, match='must be left out, since it tells the splits'):
            TorchvisionImages(name, root=str(tmp_path), **option)['test']
    with pytest.raises(Refusal, match='`SVHN option` must be one of'):
        dataset('SVHN', split='extra')
