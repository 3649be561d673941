"""NBD URIs: those of the specification's text, and what is none."""

from __future__ import annotations

import pytest

from nbd.uri import Target, format_uri, parse_uri


@pytest.mark.parametrize(
    ("uri", "export", "address"),
    [
        ("nbd://localhost", "", ("localhost", 10809)),
        ("nbd://localhost/", "", ("localhost", 10809)),
        ("nbd://example.com:1234/vol", "vol", ("example.com", 1234)),
        ("nbd://[::1]:99/a%2Fb", "a/b", ("::1", 99)),
        ("nbd+unix:///vol?socket=/run/nbd.sock", "vol", "/run/nbd.sock"),
        ("nbd+unix:///?socket=nbd.sock", "", "nbd.sock"),
        ("nbd+unix:///gr%C3%BCn?socket=/a%20b", "grün", "/a b"),
    ],
)
def test_parses(uri: str, export: str, address: str | tuple[str, int]) -> None:
    assert parse_uri(uri) == Target(export, address)


@pytest.mark.parametrize(
    "uri", ["", "x", "http://a", "nbd:///vol", "nbd+unix:///vol", "nbd+unix:///?socket=a&socket=b", "nbds://host", "nbd://host:port"]
)
def test_refuses(uri: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_uri(uri)


@pytest.mark.parametrize("export", ["", "vol", "a/b?c=d&e #", "grün", "100%"])
@pytest.mark.parametrize("address", ["/run/a b?&#%.sock", ("127.0.0.1", 5), ("::1", 10809)])
def test_formats_what_it_parses(export: str, address: str | tuple[str, int]) -> None:
    assert parse_uri(format_uri(export, address)) == Target(export, address)


def test_looks_as_expected() -> None:
    assert format_uri("vol", "/run/x.sock") == "nbd+unix:///vol?socket=/run/x.sock"
    assert format_uri("vol", ("::1", 7)) == "nbd://[::1]:7/vol"
