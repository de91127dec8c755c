"""Arrays in archives come out as they went in, or not at all."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medmvl.data.npz import npz_array, npz_file, npz_header, npz_stream
from medmvl.data.rows import TableError

KINDS = st.sampled_from(["uint8", "int16", "<i4", ">i4", "int64", "float32", "bool"])


@given(arrays.arrays(KINDS, arrays.array_shapes(min_dims=1, max_dims=4, max_side=4)), st.booleans())
def test_arrays_come_back(tmp_path_factory, array, packed) -> None:
    file = tmp_path_factory.mktemp("npz") / "x.npz"
    (np.savez_compressed if packed else np.savez)(file, a=array, other=np.zeros(3))
    with npz_file(file) as archive:
        found = npz_array(archive, "a")
        with npz_stream(archive, "a") as (stream, shape, kind):
            assert (shape, kind) == (array.shape, array.dtype) and stream.read() == array.tobytes()
    assert found.dtype == array.dtype and np.array_equal(found, array, equal_nan=array.dtype.kind == "f")


def test_columns_first_is_read_as_a_whole_only(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6).reshape(2, 3))
    np.savez(tmp_path / "x.npz", a=array)
    with npz_file(tmp_path / "x.npz") as archive:
        assert np.array_equal(npz_array(archive, "a"), array) and npz_header(archive, "a") == ((2, 3), array.dtype)
        with pytest.raises(TableError, match="columns first"), npz_stream(archive, "a"):
            pass


def test_what_is_no_array_of_numbers_is_told(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, objects=np.array([{}]), other=np.zeros(3))
    for name, told in (("objects", "is object"), ("x", "holds no array 'x'; Arrays: ")):
        with pytest.raises(TableError, match=told), npz_file(file) as archive:
            npz_array(archive, name)
    for content in (b"", b"PK\x03\x04 cut off", b"\x93NUMPY"):
        file.write_bytes(content)
        with pytest.raises(TableError, match="damaged or cut off"), npz_file(file):
            pass
    with pytest.raises(TableError, match="No such file"), npz_file(tmp_path / "y.npz"):
        pass
