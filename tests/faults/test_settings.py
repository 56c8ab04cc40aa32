"""Whatever is given as flags, by a sweep or in a recipe: a valid Config, or a mistake told in two
lines at most.
"""

import dataclasses
import math
import string
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli import Mistake, Parser
from config import FIELDS, Config, add_arguments, from_arguments, from_mapping, to_dict
from conftest import REPO

LONG_S = 5.0  # milliseconds on an idle machine


def each(fault, kind: str, values: st.SearchStrategy, examples: int, check: Callable) -> None:
    """Call `check` with so many of the values, the same ones every time; each is a fault."""

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(values)
    def one(value):
        with fault(kind):
            check(value)

    one()


def answer(make: Callable[[], Config], names: Iterable[str]) -> Config | None:
    """The Config that came out, valid; None where it was a mistake that names one of `names`."""
    start = time.perf_counter()
    try:
        config = make()
    except Mistake as mistake:
        message = str(mistake)
        assert 1 <= len(message.splitlines()) <= 2, message
        assert message.strip() and len(message) < 1000
        assert any(name in message for name in names), message
        return None
    finally:
        assert time.perf_counter() - start < LONG_S
    assert_valid(config)
    return config


def assert_valid(config: Config) -> None:
    for name, one in FIELDS.items():
        value, about = getattr(config, name), one.metadata
        assert type(value) is one.type, f"{name}={value!r}"
        if "low" in about:
            assert about["low"] <= value <= about["high"], f"{name}={value!r}"
            assert not (about["above"] and value == about["low"]), f"{name}={value!r}"
        if "choices" in about:
            assert value in about["choices"], f"{name}={value!r}"
        if one.type is str:
            assert value and len(value.splitlines()) == 1, f"{name}={value!r}"
    assert from_mapping(to_dict(config)) == config


def parse(*arguments: str) -> Config:
    parser = Parser()
    add_arguments(parser)
    return from_arguments(parser.parse_args(list(arguments)))


def misspelt(words: Iterable[str]) -> st.SearchStrategy[str]:
    """One of the words with a letter less, more or changed, or in capitals; or as it is."""

    def change(word: str, at: int, letter: str, how: int) -> str:
        at %= len(word) + 1
        return (
            word,
            word[:at] + word[at + 1 :],
            word[:at] + letter + word[at:],
            word[:at] + letter + word[at + 1 :],
            word.upper(),
            word + " ",
        )[how]

    letters = st.sampled_from(string.ascii_lowercase + "_-:, 0\n\0é")
    return st.builds(
        change, st.sampled_from(sorted(words)), st.integers(0, 30), letters, st.integers(0, 5)
    )


WRITTEN = """
    nan inf -inf +Infinity -nan 1e999 -1e999 1e-999 1e308 -0 -0.0 -1 1e 1e-4 1,5 1.0.0 0x10 1_0 1__0
    ١٢ ½ １ 1+1j None null ~ true False on 2147483648 9007199254740993 0.99999999999999999
"""
ODD_NUMBERS = st.sampled_from(WRITTEN.split())
LONG_TEXTS = ["9" * 400, "9" * 5000, "8:" + "9" * 20_000 + "x", "x" * 100_000, "\n" * 50]
TEXTS = st.text(st.characters(), max_size=20)  # of all Unicode, surrogates and control characters
CHOICES = {choice for one in FIELDS.values() for choice in one.metadata.get("choices", ())}
WORDS = {*CHOICES, "resnet18", "small", "full", "32:0.67,48:0.9", "cuda:1", "true", "false"}


@cache
def numbers_for(name: str) -> st.SearchStrategy[int | float]:
    """At the bounds of the field and a little inside and outside, and anywhere."""
    about = FIELDS[name].metadata
    steps = st.sampled_from([-1, -1e-9, 0, 0, 1e-9, 0.5, 1])
    bounds = st.sampled_from([about.get("low", 0), about.get("high", 1)])
    near = st.builds(lambda bound, step: bound + step, bounds, steps)
    within = st.floats(about.get("low", 0), about.get("high", 1))
    return near | within | st.builds(int, within) | st.integers() | st.floats()


@cache
def texts_for(name: str) -> st.SearchStrategy[str]:
    odd = ODD_NUMBERS | TEXTS | st.sampled_from(LONG_TEXTS)
    return numbers_for(name).map(str) | misspelt(WORDS) | odd


@cache
def values_for(name: str) -> st.SearchStrategy:
    """What a sweep's JSON, a caller in Python or YAML may give, of any type."""
    plain = st.none() | st.booleans() | st.dates() | st.binary(max_size=5) | st.complex_numbers()
    huge = st.integers(300, 5000).map(lambda digits: 10**digits)
    flat = numbers_for(name) | texts_for(name) | plain | huge
    return flat | st.recursive(
        flat, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
    )


@pytest.mark.parametrize("name", FIELDS)
def test_any_text_of_a_flag(fault, name):
    def check(text):
        answer(lambda: parse(f"--{name}={text}"), [name])

    each(fault, "config: a flag", texts_for(name), 12, check)


def test_many_flags(fault):
    flag = st.sampled_from(sorted(FIELDS)).flatmap(
        lambda name: st.tuples(st.just(name), numbers_for(name).map(str) | misspelt(WORDS))
    )
    unknown = st.tuples(misspelt(FIELDS), st.just("1"))

    def check(flags):
        arguments = [f"--{name.strip()}={text}" for name, text in flags]
        answer(lambda: parse(*arguments), [name.split("=")[0].strip() for name, _ in flags])

    each(fault, "config: many flags", st.lists(flag | unknown, min_size=1, max_size=6), 150, check)


@pytest.mark.parametrize("name", FIELDS)
def test_any_value_of_a_key(fault, name):
    def check(value):
        answer(lambda: from_mapping({name: value}), [name])

    each(fault, "config: a value", values_for(name), 8, check)


ODD_YAML = [  # what may stand after `key:`
    "",
    "|\n  a\n  b",
    ">-\n  1",
    "!!python/object/apply:os.system ['touch EVIL']",
    "!!python/name:os.system",
    "!!python/object/new:os.system ['touch EVIL']",
    "!!int ''",
    "!!bool maybe",
    "!!timestamp never",
    "!!binary NQ==",
    "!!set {1, 2}",
    "!unknown 5",
    "2024-13-45",
    "2001-12-14t21:59:43.10-99:99",
    "0b_",
    "0x_",
    "190:20:30",
    ":".join(["1"] * 400) + ".5",
    "9" * 5000,
    "0x" + "f" * 5000,
    "1e-4",
    ".nan",
    "-.inf",
    "=",
    "<<",
    "yes",
    "'",
    '"\\ud800"',
    '"\\U7fffffff"',
    '"a\\0b\\nc"',
    "&a 1",
    "*a",
    "&a [*a, *a]",
    "{a: *a}",
    "[1, [2, {3: 4}]]",
    "[" * 3000,
    "{a: " * 3000,
    "- - - - -",
    "? ? ? ?",
    "%YAML 9.9",
    "@",
    "\t1",
    "a: b: c",
    "---",
    "...",
    "x\n---\n",
]
LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
BOMBS = {
    "a billion laughs": f"a0: &a0 [{'1, ' * 9}]\n{LAUGHS}amp: *a11\n",
    "aliases in flow": "epochs: &a [&b [*a, *b], *b, *b]\namp: *a\n",
    "merged into itself": "&a\n" + "<<: *a\n" * 200,
    "merges of merges": "a0: &a0 {epochs: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)),
    "nested lists": "amp: " + "[" * 200_000,
    "nested in blocks": "".join(" " * i + "a:\n" for i in range(2000)),
    "nested by dashes": "- " * 50_000,
    "nested keys": "? " * 50_000,
    "a long line": "epochs: " + "9" * 500_000,
    "many keys": "".join(f"x{i}: 1\n" for i in range(5000)),
    "the same key": "epochs: 3\n" * 5000,
    "digits by a base": "epochs: 0x" + "f" * 300_000,
    "a number to base 60": "epochs: " + "1:" * 5000 + "1.5",
    "a Python object": "epochs: !!python/object/apply:os.system ['touch EVIL']\n",
}


def read(path: Path, content: bytes, *flags: str) -> Config | None:
    path.write_bytes(content)
    return answer(lambda: parse(f"--config={path}", *flags), [str(path), *FIELDS])


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_recipe_that_would_never_be_read(fault, tmp_path, monkeypatch, bomb):
    monkeypatch.chdir(tmp_path)
    with fault("config: a bomb in a recipe"):
        config = read(tmp_path / "recipe.yaml", BOMBS[bomb].encode())
    assert (config is not None) == (bomb == "the same key")
    assert not (tmp_path / "EVIL").exists()


def test_any_lines_in_a_recipe(fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = st.sampled_from(sorted(FIELDS)) | misspelt(FIELDS) | st.sampled_from(ODD_YAML)
    values = st.sampled_from(ODD_YAML) | st.sampled_from(sorted(WORDS)) | TEXTS
    numbers = st.floats().map(str) | st.integers(0, 100).map(str) | ODD_NUMBERS
    line = st.builds("{}: {}".format, keys, numbers | values)
    lines = st.lists(line | st.sampled_from(ODD_YAML), max_size=6).map("\n".join)

    def check(text):
        read(tmp_path / "recipe.yaml", text.encode(errors="surrogatepass"))

    each(fault, "config: lines of a recipe", lines, 250, check)
    assert not (tmp_path / "EVIL").exists()


def test_any_values_in_a_recipe(fault, tmp_path):
    pair = st.builds(as_yaml, st.sampled_from(sorted(FIELDS)), values_for("epochs"))
    pairs = st.lists(pair, min_size=1, max_size=3).map("".join)  # a key may come twice

    def check(text):
        read(tmp_path / "recipe.yaml", text.encode(errors="surrogatepass"))

    each(fault, "config: values of a recipe", pairs, 100, check)


def as_yaml(name: str, value) -> str:
    try:
        return yaml.dump({name: value}, allow_unicode=True)  # a complex number has a Python tag
    except ValueError:  # thousands of digits
        return f"{name}: 0x{'f' * 5000}\n"


def test_any_bytes_in_a_recipe(fault, tmp_path):
    def check(content):
        read(tmp_path / "recipe.yaml", content)

    each(fault, "config: bytes of a recipe", st.binary(max_size=200), 100, check)


def test_a_recipe_with_a_byte_changed_or_lost(fault, tmp_path):
    """The rest of it is read as before, or the file or the field is named."""
    whole = (REPO / "recipes/best.yaml").read_bytes()
    places = st.integers(0, len(whole) - 1)

    def check(change):
        at, byte, lost = change
        read(tmp_path / "recipe.yaml", whole[:at] + byte + whole[at + lost :])

    changes = st.tuples(places, st.binary(max_size=2), st.sampled_from([0, 1, 1, len(whole)]))
    each(fault, "config: a damaged recipe", changes, 100, check)


def test_a_valid_config_is_found_among_the_examples(fault):
    """The tests above would pass, too, where everything is refused."""
    found = []

    def check(values):
        found.append(answer(lambda: from_mapping(values), FIELDS))

    numbers = [name for name, one in FIELDS.items() if "low" in one.metadata]
    fitting = {name: within(name) for name in numbers if name not in ("base_lr", "max_lr")}
    each(fault, "config: a fitting value", st.fixed_dictionaries({}, optional=fitting), 50, check)
    valid = [config for config in found if config]
    assert len(valid) > len(found) // 2
    assert len({dataclasses.astuple(config) for config in valid}) > 10


def within(name: str) -> st.SearchStrategy[int | float]:
    about, kind = FIELDS[name].metadata, FIELDS[name].type
    low, high = about["low"], about["high"]
    if kind is int:
        return st.integers(math.ceil(low) + about["above"], math.floor(high))
    return st.floats(low, high, exclude_min=about["above"])
