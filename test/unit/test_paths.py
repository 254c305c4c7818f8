"""Where things lie, for each way of setting the environment."""

from __future__ import annotations

import os

import pytest

from shoebox import paths

HOME = {"HOME": "/home/u"}


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")


@pytest.mark.parametrize(
    ("env", "cache"),
    [
        ({}, "/home/u/.cache/shoebox"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/shoebox"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/u/.cache/shoebox"),  # XDG: relative paths are to be ignored
        ({"XDG_CACHE_HOME": ""}, "/home/u/.cache/shoebox"),
        ({"SHOEBOX_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c"),
        ({"SHOEBOX_CACHE": "here/./c/"}, os.path.join(os.getcwd(), "here/c")),
        ({"SHOEBOX_CACHE": ""}, "/home/u/.cache/shoebox"),
    ],
)
def test_the_cache_is_where_the_variables_say(env, cache):
    assert paths.cache(env) == cache
    assert paths.images(env) == f"{cache}/images"


@pytest.mark.parametrize(
    ("path", "stores"),
    [
        ("", ["/c/images"]),
        (":", ["/c/images"]),
        ("/a:/b", ["/a", "/b"]),
        (":/a::/b/:", ["/a", "/b"]),
        ("s", [os.path.join(os.getcwd(), "s")]),
    ],
)
def test_stores_are_searched_in_order_and_empty_entries_say_nothing(path, stores):
    assert paths.stores({"SHOEBOX_PATH": path, "SHOEBOX_CACHE": "/c"}) == stores


def test_without_a_path_there_is_the_users_own_store():
    assert paths.stores({}) == ["/home/u/.cache/shoebox/images"]


@pytest.mark.parametrize(
    ("env", "where"),
    [
        ({}, "/home/u/.config/shoebox"),
        ({"XDG_CONFIG_HOME": "/x"}, "/x/shoebox"),
        ({"XDG_CONFIG_HOME": "x"}, "/home/u/.config/shoebox"),
    ],
)
def test_the_users_configuration_is_where_xdg_says(env, where):
    assert paths.user_config(env) == where
