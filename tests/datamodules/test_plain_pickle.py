"""Pickles are read only as far as they hold plain numbers."""

import pickle

import pytest

from datamodules.plain_pickle import read_plain_pickle
from runs.errors import InputError


class Evil:
    """What a hostile pickle does when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_would_run_something_is_refused_before_it_does(tmp_path):
    path, proof = tmp_path / "neg.pckl", tmp_path / "proof"
    path.write_bytes(pickle.dumps([(1, Evil(proof))]))
    with pytest.raises(InputError, match=r"neg\.pckl is no list of image numbers \(it asks for .*open\)"):
        read_plain_pickle(path)
    assert not proof.exists()


@pytest.mark.parametrize("content", [{"a": 1}, [(1, "x")], [1.5], [None], {1, 2}, b"bytes"])
def test_a_pickle_of_anything_but_lists_tuples_ints_and_bools_is_refused(content, tmp_path):
    path = tmp_path / "neg.pckl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"neg\.pckl"):
        read_plain_pickle(path)


def test_a_plain_pickle_and_a_damaged_one(tmp_path):
    path = tmp_path / "neg.pckl"
    path.write_bytes(pickle.dumps([(1, True), (2, False), [3, 4]]))
    assert read_plain_pickle(path) == [(1, True), (2, False), [3, 4]]
    path.write_bytes(pickle.dumps([(1, True)])[:-3])
    with pytest.raises(InputError, match="is no list of image numbers"):
        read_plain_pickle(path)
    with pytest.raises(InputError, match="there is no file"):
        read_plain_pickle(tmp_path / "gone")
