"""CSV files: what is read, and what the errors say."""

import numpy as np
import pytest

from convexnn.errors import InvalidInputError
from convexnn.table import read_csv

GOOD = "age,mass,kind\n1,2.5,cat\n2,3e1,dog\n\n3,-1,cat\n"


def write(tmp_path, text):
    path = tmp_path / "data.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_features_and_labels(tmp_path):
    table = read_csv(write(tmp_path, GOOD), target="kind")
    np.testing.assert_array_equal(table.X, [[1, 2.5], [2, 30], [3, -1]])
    assert table.y.tolist() == ["cat", "dog", "cat"]
    assert table.features == ("age", "mass")
    assert table.task == "classification"


def test_drop_delimiter_quotes_and_byte_order_mark(tmp_path):
    path = write(tmp_path, '\ufeff"a b";c;y\n1;x;0.5\n2;z;0.25\n')
    table = read_csv(path, target="y", drop=("c",), delimiter=";")
    assert table.features == ("a b",)
    assert table.y.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([0, 1] * 5, "classification"),
        ([0.5, 1.5] * 5, "regression"),
        (range(10), "regression"),
        ([*range(10), *range(10)], "classification"),
    ],
)
def test_task_follows_the_target(tmp_path, values, task):
    lines = "\n".join(f"{i},{v}" for i, v in enumerate(values))
    assert read_csv(write(tmp_path, "x,y\n" + lines), target="y").task == task


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        (GOOD, "type", "no column 'type'; its columns are: age, mass, kind"),
        (GOOD, "age", "not finite numbers: kind .*'cat' in 'kind'.*--drop kind"),
        ("a,y\n1,2\n,3\n", "y", "column 'a' has 1 missing values, the first in data line 2.*--drop a"),
        ("a,y\n1,2\n3,NA\n", "y", "column 'y' has 1 missing values"),
        ("a,y\n1,2\ninf,3\n", "y", "not finite numbers: a"),
        ("a,y\n1,2\n3\n", "y", "data line 2 has 1 fields, the header has 2"),
        ("a,y\n", "y", "at least one line of data"),
        ("", "y", "a header line"),
        ("a,a,y\n1,2,3\n", "y", "more than once in the header: a"),
        ("y\n1\n", "y", "no feature columns"),
    ],
)
def test_errors_say_where_to_look(tmp_path, text, target, message):
    with pytest.raises(InvalidInputError, match=message):
        read_csv(write(tmp_path, text), target=target)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_another_delimiter_is_guessed_in_the_error(tmp_path, mark):
    path = write(tmp_path, f"a{mark}y\n1{mark}2\n")
    with pytest.raises(InvalidInputError, match="pass it as the delimiter"):
        read_csv(path, target="y")


def test_absent_and_binary_files(tmp_path):
    with pytest.raises(InvalidInputError, match="there is no file"):
        read_csv(tmp_path / "absent.csv", target="y")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InvalidInputError, match="cannot be read as UTF-8 CSV"):
        read_csv(tmp_path / "binary.csv", target="y")
