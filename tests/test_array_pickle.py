"""The reader of the pickles in which CIFAR and others come: arrays and plain values come back, and no code is run."""

from __future__ import annotations

import builtins
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from cifar_helpers import PROTOCOLS, python2_batch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedmoe.errors import UserError
from fedmoe.readers.array_pickle import load_arrays


class Harm:
    """What a malicious pickle holds: loading it calls a function."""

    def __init__(self, function, *args) -> None:
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_arrays(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_malicious_pickle_does_nothing(protocol, tmp_path):
    """The file would make a file; torchvision's reader runs it, ours names what it asks for."""
    mark = tmp_path / "mark"
    harm = Harm(os.mkdir, str(mark))
    for number, content in enumerate([harm, {"data": harm}, [np.array([harm], dtype=object)], {harm: 1}]):
        message = refused(tmp_path / "file", pickle.dumps(content, protocol))
        assert f"asks for {os.mkdir.__module__}.mkdir, which is refused" in message, number
    assert not mark.exists()
    pickle.loads(pickle.dumps(harm, protocol))
    assert mark.exists()


@pytest.mark.parametrize("function", [builtins.eval, builtins.exec, builtins.getattr, builtins.__import__, np.load])
def test_no_function_can_be_named(function, tmp_path):
    assert f".{function.__name__}, which is refused" in refused(tmp_path / "file", pickle.dumps(Harm(function, "1")))


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy\nndarray\n(I1000000000000\ntR.",  # a huge array, by numpy's own constructor
        b"cnumpy\nndarray\n.",  # the constructor itself
        b"cnumpy\ndtype\n(}S'__code__'\nI1\nsb.",  # attributes given to a name
        b"cnumpy\ndtype\n(NS'x'\ntb.",
        b"cnumpy\ndtype\n(S'O'\ntR.",  # a number format alone
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O'\ntRS'12345678'\ntR.",  # an object at an address
        b"c_codecs\nencode\n(S'0102'\nS'hex'\ntR.",  # another codec
        b"c__builtin__\nbytes\n(I1000000000000\ntR.",
        b"Pelsewhere\n.",  # something outside of the file
        pickle.dumps({1, 2}),
        pickle.dumps(np.zeros(2, dtype=[("a", "i4")])),
        pickle.dumps(np.arange(100))[:-30],
        b"no pickle",
        b"",
    ],
)
def test_what_is_no_array_is_refused(content, tmp_path):
    refused(tmp_path / "file", content)


def test_a_list_that_holds_itself(tmp_path):
    itself: list = []
    itself.append(itself)
    refused(tmp_path / "file", pickle.dumps(itself))


def test_a_part_that_occurs_often_is_read_once(tmp_path):
    """Sixty levels of ten references each: 10**60 values if every one were walked through."""
    nested: list = [1]
    for _ in range(60):
        nested = [nested] * 10
    (tmp_path / "file").write_bytes(pickle.dumps(nested))
    found = load_arrays(tmp_path / "file")
    for _ in range(60):
        assert len(found) == 10
        found = found[0]
    assert found == [1]


kinds = st.one_of(
    arrays.integer_dtypes(endianness="?"),
    arrays.floating_dtypes(endianness="?", sizes=(32, 64)),
    arrays.boolean_dtypes(),
    arrays.unicode_string_dtypes(max_len=4),
    arrays.byte_string_dtypes(max_len=4),
)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()),
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.one_of(st.text(), st.binary()), inner)
    ),
    max_leaves=10,
)


@given(arrays.arrays(kinds, arrays.array_shapes(min_dims=0, min_side=0)), st.booleans(), st.sampled_from(PROTOCOLS))
def test_arrays_come_back(tmp_path_factory, array, fortran, protocol):
    array = np.asfortranarray(array) if fortran else array
    path = tmp_path_factory.getbasetemp() / "array"
    path.write_bytes(pickle.dumps([array, array], protocol))
    for found in load_arrays(path):
        assert found.dtype == array.dtype and found.shape == array.shape
        assert found.tobytes() == array.tobytes()


@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_values_come_back(tmp_path_factory, value, protocol):
    path = tmp_path_factory.getbasetemp() / "plain"
    path.write_bytes(pickle.dumps(value, protocol))
    assert load_arrays(path) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_objects_and_scalars_come_back(protocol, tmp_path):
    """FedBN's lists hold arrays of texts, which numpy may have made arrays of objects."""
    pairs = (np.array([["a/b.jpg", "c"], ["d", 1]], dtype=object), [np.str_("bird"), np.int64(3), np.float32(0.5)])
    (tmp_path / "file").write_bytes(pickle.dumps(pairs, protocol))
    table, scalars = load_arrays(tmp_path / "file")
    assert table.dtype == object and table.tolist() == [["a/b.jpg", "c"], ["d", 1]]
    assert scalars == ["bird", 3, 0.5] and [type(value) for value in scalars] == [str, int, float]


def test_a_pickle_of_python_2(tmp_path):
    data = np.array([[0, 1, 2], [253, 254, 255]], dtype=np.uint8)
    (tmp_path / "file").write_bytes(python2_batch(data, [1, 2]))
    found = load_arrays(tmp_path / "file")
    assert found["data"].dtype == np.uint8 and found["data"].tolist() == data.tolist()
    assert found["labels"] == [1, 2]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing cannot be read: No such file"):
        load_arrays(tmp_path / "nothing")
