"""Runs that earlier releases have written load, are evaluated, rerun and resume with the same
numbers
"""

import json
import shutil

import pytest
import torch
from released import LONGER, RELEASES, arithmetic, loaded_again, resumed, run_again, run_folders_of

from dlframe.loading import best
from dlframe.specs import find, read, write

releases = sorted(path.name for path in RELEASES.iterdir() if path.is_dir())
kept = [(release, run) for release in releases for run in run_folders_of(RELEASES / release)]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, tmp_path):
    monkeypatch.setenv('RUNS_ROOT', str(tmp_path / 'runs'))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def results(release):
    return json.loads((RELEASES / release / 'results.json').read_text())


def copy_of(release, run, tmp_path):
    return shutil.copytree(run_folders_of(RELEASES / release)[run], tmp_path / run)


def check(release, run, what, found):
    "Numbers are the same to the last bit where torch computes as it did, else to a thousandth"
    expected = results(release)
    exact = expected['arithmetic'] == arithmetic()
    expected = expected['runs'][run][what]
    assert expected['metrics'] or run == 'gan'
    if exact:
        assert found == expected
        return
    for group in set(expected) - {'weights'}:
        assert found[group] == pytest.approx(expected[group], rel=1e-3, abs=1e-3), group


@pytest.mark.parametrize('release, run', kept)
def test_a_kept_run_loads(release, run, tmp_path):
    found = loaded_again(copy_of(release, run, tmp_path))
    assert found['weights'] == results(release)['runs'][run]['loaded']['weights']
    check(release, run, 'loaded', found)


@pytest.mark.parametrize('release, run', kept)
def test_a_kept_run_is_rerun(release, run, tmp_path):
    found = run_again(copy_of(release, run, tmp_path), 'again')
    check(release, run, 'rerun', found)
    earlier = run_folders_of(RELEASES / release)[run]
    names_before, names_now = (
        class_names_in(read(folder / 'manifest.json'))
        for folder in (earlier, tmp_path / 'runs/again')
    )
    assert {find(name) for name in names_before} == {find(name) for name in names_now}
    for name in names_now:
        assert name == f'{find(name).__module__}.{find(name).__qualname__}'


def class_names_in(manifest):
    if isinstance(manifest, dict):
        own = {manifest['cls']} if 'cls' in manifest else set()
        return own.union(*map(class_names_in, manifest.values()))
    return set().union(*map(class_names_in, manifest)) if isinstance(manifest, list) else set()


@pytest.mark.parametrize('release, run', kept)
def test_a_kept_run_resumes(release, run, tmp_path):
    folder = copy_of(release, run, tmp_path)
    check(release, run, 'resumed', resumed(folder))
    assert read(folder / 'manifest.json')['run']['train_for'] == (
        LONGER if run != 'interrupted' else '2 epochs'
    )


@pytest.mark.parametrize('release', releases)
def test_the_best_trial_of_a_kept_sweep(release, tmp_path):
    found = best(shutil.copytree(RELEASES / release / 'grid', tmp_path / 'grid'))
    assert found.manifest['parameters']['beta'] == 1.0


@pytest.mark.parametrize('release', releases)
def test_class_names_of_a_release_are_found(release):
    names = json.loads((RELEASES / release / 'names.json').read_text())
    assert len(names) > 80
    for name in names:
        assert isinstance(find(name), type), name


def test_a_changed_number_is_seen(tmp_path):
    release = releases[0]
    folder = copy_of(release, 'vae', tmp_path)
    manifest = read(folder / 'manifest.json')
    manifest['optimization']['lr'] *= 2
    write(manifest, folder / 'changed.json')
    (folder / 'changed.json').replace(folder / 'manifest.json')
    (folder / 'SHA256SUMS').unlink()
    with pytest.raises(AssertionError):
        check(release, 'vae', 'rerun', run_again(folder, 'changed'))
