"""References: which URLs and files the prefixes of an operator admit."""

import pytest

from repmamba.errors import UsageError
from repmamba.service.references import Allowed, NotAllowed, admitted

PREFIX = "http://host/open"


@pytest.mark.parametrize(
    "href",
    [
        "http://host/open/scene.tif",
        "HTTP://HOST:80/open/a%20b.tif?size=large",
        "http://host/open/a..b/.c.tif",
    ],
)
def test_a_url_below_the_prefix_is_admitted(href):
    assert admitted(href, [Allowed.parse(PREFIX)]) == href


@pytest.mark.parametrize(
    "href",
    [
        "http://host/open",
        "http://host/openly/a.tif",
        "http://host/Open/a.tif",
        "http://host/%6fpen/a.tif",
        "https://host/open/a.tif",
        "https://host:80/open/a.tif",
        "http://other/open/a.tif",
        "http://host.other/open/a.tif",
        "http://host:81/open/a.tif",
        "http://host:0/open/a.tif",
        "http://host:99999/open/a.tif",
        "http://[host/open/a.tif",
        "http://user@host/open/a.tif",
        "http://user:word@host/open/a.tif",
        "ftp://host/open/a.tif",
        "http:///open/a.tif",
        "//host/open/a.tif",
        "host/open/a.tif",
        "http://host/open/./a.tif",
        "http://host/open/%2e/a.tif",
        "http://host/open/../a.tif",
        "http://host/open/..;x/a.tif",
        "http://host/open/%2e%2E/a.tif",
        "http://host/open/%252e%252e/a.tif",
        "http://host/open/..%2fa.tif",
        "http://host/open/..%5ca.tif",
        "http://host/open/..\\a.tif",
        "http://host/open/\ta.tif",
        "http://host/open/a b.tif",
        "http://host/open/\u00e9.tif",
        "http://host/open/\uff0e\uff0e/a.tif",
        "http://host\\.other/open/a.tif",
        "",
    ],
)
def test_a_url_that_is_elsewhere_or_ambiguous_is_refused(href):
    with pytest.raises(NotAllowed):
        admitted(href, [Allowed.parse(PREFIX)])


def test_the_port_of_the_scheme_may_be_named():
    assert admitted("https://host:443/a", [Allowed.parse("https://host/")])
    assert admitted("https://host/a", [Allowed.parse("https://host:443")])


def test_a_file_is_admitted_below_its_folder_only(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    allowed = [Allowed.parse(str(tmp_path / "open"))]
    assert admitted(f"file://{tmp_path}/link/open/a%20b", allowed) == tmp_path / "open" / "a b"
    for name in ("a", "openly/a", "open/../a", "open/%2e%2e/a", "open%00/../a"):
        with pytest.raises(NotAllowed):
            admitted(f"file://{tmp_path}/{name}", allowed)
        with pytest.raises(NotAllowed):
            admitted(f"file://{tmp_path}/open/a", [Allowed.parse(PREFIX)])


@pytest.mark.parametrize("text", ["https://host/a?b", "ftp://host/", "https://", "/no/such/folder"])
def test_a_prefix_that_admits_nothing_is_refused_at_the_start(text):
    with pytest.raises(UsageError, match=r"expected https://host/path|neither a folder nor a URL"):
        Allowed.parse(text)
