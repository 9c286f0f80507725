"""JSON and YAML: what is read, and what is refused in bounded time."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError


def yaml_value(text):
    return guarded.parse_yaml(text, "f.yaml", remedy="fix it")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),  # PyYAML: 90
        ("1e-3", 1e-3),  # PyYAML: text
        ("1E5", 1e5),
        ("2026-01-31", "2026-01-31"),  # PyYAML: a date
        ("010", 10),  # PyYAML: 8
        ("0o17", 15),
        ("0x1F", 31),
        ("0b101", 5),
        ("1_000_000", 1_000_000),
        ("-3", -3),
        ("+.5", 0.5),
        ("1.", 1.0),
        (".inf", float("inf")),
        ("on", True),
        ("~", None),
        ("", None),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("-", [None]),
        ("'1'", "1"),
        ("=", "="),
        ("<<: {a: 1}", {"<<": {"a": 1}}),  # PyYAML merges, lists of them without a bound
        ("[&a [1, 2], *a]", [[1, 2], [1, 2]]),
    ],
)
def test_plain_values_of_yaml(text, value):
    found = yaml_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("&a {x: *a}", "or cyclic"),
        ("&a [*a]", "or cyclic"),
        ("[" * 900 + "]" * 900, "nested deeper than 100 levels"),
        ("{a: " * 900 + "1" + "}" * 900, "nested deeper than 100 levels"),
        ("\n".join(" " * depth + "a:" for depth in range(200)), "nested deeper than 100 levels"),
        ("[" * 60_000, "nested deeper than 100 levels"),
        ("a: " + "9" * 401, "a number of 401 digits"),
        ("a: 0x" + "f" * 20_000, "a number of 20002 digits"),
        ("x" * 70_000, "longer than 65,536 characters"),
        ("!!timestamp 2026-01-31", "it holds date"),
        ("!!set {a}", "it holds set"),
        ("!!binary eA==", "it holds bytes"),
        ("!!int ''", "unreadable YAML"),
        ("!!float x", "unreadable YAML"),
        ("!!python/name:os.system x", "unreadable YAML"),
        ("? [1]\n: 2", "unhashable key"),
        ("ppo: {a: 1}\nseed: 0\nppo: {b: 2}", "'ppo' is given twice"),  # PyYAML forgets the first
        ("a: [1", "unreadable YAML"),
        ("\0", "unreadable YAML"),
        ("*a", "undefined alias"),
    ],
)
def test_yaml_that_is_refused(text, said):
    with pytest.raises(InputError) as caught:
        yaml_value(text)
    assert str(caught.value).startswith("f.yaml: unreadable YAML")
    assert said in str(caught.value)
    assert str(caught.value).endswith("fix it")
    assert len(str(caught.value)) < 1000


def test_aliases_that_double_and_double_again_are_refused_at_once():
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 12)]
    with pytest.raises(InputError, match="more than 100,000 values, aliases expanded"):
        yaml_value("\n".join(["a0: &a0 [x]", *levels]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
number_like = st.text("0123456789eE+-._:xob ~", max_size=8)


@given(value=json_values | number_like)
def test_what_is_dumped_comes_back_here_and_in_pyyaml(value):
    text = guarded.dump_yaml({"a": value})
    assert yaml_value(text) == {"a": value}
    assert yaml.safe_load(text) == {"a": value}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 900 + "]" * 900, "nested deeper than 100 levels"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested deeper than 100 levels"),
        ("[" * 100_000, "unreadable JSON"),
        ("9" * 5000, "unreadable JSON"),
        ("", "not valid JSON"),
        ("{", "line 3"),
    ],
)
def test_json_that_is_refused(text, said):
    with pytest.raises(InputError) as caught:
        guarded.parse_json(text, "f.json", first_line=3, remedy="fix it")
    assert said in str(caught.value)
    assert str(caught.value).endswith("fix it")


def test_json_of_ordinary_depth_is_read():
    deep = json.loads("[" * 100 + "]" * 100)
    assert guarded.parse_json(json.dumps(deep), "f", remedy="") == deep
    wide = [{"a": [1]}] * 1000
    assert guarded.parse_json(json.dumps(wide), "f", remedy="") == wide


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"'])
def test_an_object_is_wanted(tmp_path, content):
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(InputError, match=r"f\.json: holds .*, not a JSON object; fix it"):
        guarded.read_object(tmp_path / "f.json", remedy="fix it")
