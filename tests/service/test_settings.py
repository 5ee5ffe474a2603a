"""Settings: what a service refuses to start with, and the names under which it answers."""

from pathlib import Path
from typing import Any

import pytest

from repmamba.errors import UsageError
from repmamba.service.settings import Settings, read_token

TOKEN = "0123456789abcdef"


def settings(**values: Any) -> Settings:
    return Settings(Path("folder"), {"x4": "x4"}, **values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"host": "0.0.0.0", "public_url": "https://a.example"}, "no token is set"),
        ({"host": "::", "public_url": "https://a.example"}, "no token is set"),
        ({"host": "192.0.2.1"}, "no token is set"),
        ({"host": "name.example"}, "no token is set"),
        ({"host": "0.0.0.0", "token": TOKEN}, "--public-url"),
        ({"host": "::", "token": TOKEN}, "--public-url"),
        ({"token": TOKEN[1:]}, "has 15 characters"),
        ({"token": ""}, "has 0 characters"),
        ({"public_url": "a.example"}, "The public URL is"),
        ({"public_url": "ftp://a.example"}, "The public URL is"),
        ({"public_url": "https://"}, "The public URL is"),
        ({"public_url": "https://a.example/path"}, "The public URL is"),
        ({"public_url": "https://a.example?query"}, "The public URL is"),
        ({"public_url": "https://a.example#part"}, "The public URL is"),
        ({"public_url": "https://user@a.example"}, "The public URL is"),
        ({"public_url": "https://a.example:99999"}, "The public URL is"),
    ],
)
def test_settings_that_leave_it_open_or_unreachable_are_refused(values, said):
    with pytest.raises(UsageError, match=said):
        settings(**values)


@pytest.mark.parametrize(
    ("values", "url", "hosts"),
    [
        ({"host": "192.0.2.1", "port": 8000}, "http://192.0.2.1:8000", {"192.0.2.1:8000"}),
        ({"host": "192.0.2.1", "port": 80}, "http://192.0.2.1", {"192.0.2.1", "192.0.2.1:80"}),
        ({"host": "2001:db8::1"}, "http://[2001:db8::1]:8000", {"[2001:db8::1]:8000"}),
        (
            {"host": "0.0.0.0", "public_url": "HTTPS://A.example:443/"},
            "https://a.example",
            {"a.example", "a.example:443"},
        ),
        (
            {"host": "0.0.0.0", "public_url": "https://a.example:8443"},
            "https://a.example:8443",
            {"a.example:8443"},
        ),
    ],
)
def test_it_answers_under_the_names_that_browsers_send(values, url, hosts):
    made = settings(token=TOKEN, **values)
    assert (made.url, made.urls, made.hosts) == (url, {url}, hosts)


def test_on_loopback_it_answers_under_all_three_names():
    assert settings(port=80).urls == {"http://localhost", "http://127.0.0.1", "http://[::1]"}
    assert settings().hosts == {"localhost:8000", "127.0.0.1:8000", "[::1]:8000"}


def test_an_empty_token_file_does_not_leave_the_service_open(tmp_path):
    (tmp_path / "token").write_text("\n")
    with pytest.raises(UsageError, match="has 0 characters"):
        settings(token=read_token(tmp_path / "token"))


def test_a_token_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "token").write_bytes(b"\xff" * 16)
    for path in (tmp_path / "token", tmp_path / "none"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_token(path)


def test_the_file_is_preferred_to_the_environment(tmp_path, monkeypatch):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("REPMAMBA_TOKEN", f" {TOKEN[::-1]} ")
    assert read_token(tmp_path / "token") == TOKEN
    assert read_token(None) is None  # the environment was emptied
    monkeypatch.setenv("REPMAMBA_TOKEN", f" {TOKEN[::-1]} ")
    assert read_token(None) == TOKEN[::-1]
