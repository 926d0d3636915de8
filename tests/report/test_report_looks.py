"""The page in a browser: legible by day and by night, on a phone and on a wide screen."""

import browser
import pytest
from reports import converted, page, planned, rows

WIDTHS = (400, 1000, 1600)
SITES = 24
BROKEN = (
    '<!DOCTYPE html><meta name="color-scheme" content="light dark"><div style="width:1700px">wide</div>'
    '<article style="width:3em"><p style="white-space:nowrap">a line that leaves its card</p></article><svg width="99">'
    '<text y="20">one label</text><text y="24">another label</text><text x="2000" y="40">far</text></svg>'
)
OUTSIDE = ["far", "a line that leaves its card"]

pytestmark = pytest.mark.skipif(
    browser.program() is None, reason=f"no browser to look at the page with; one of {', '.join(browser.NAMES)} does"
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of every kind, and two pages as they should not be."""
    tiny = converted(tmp_path_factory.mktemp("report"))
    many = {**tiny, "filters": rows(SITES), "planned": planned(rows(SITES))}
    return {
        "within a budget": page({**tiny, "planned": planned(tiny["filters"])}),
        "many sites": page(many),
        "without a budget": page(tiny),
        "never measured": page({**tiny, "evaluation": None}),
        "broken": BROKEN,
        "blank": '<!DOCTYPE html><meta name="color-scheme" content="light dark">',
    }


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(request, pages, tmp_path_factory):
    """Whether the browser prefers dark pages, and every page at every width."""
    dark = request.param == "dark"
    return dark, browser.views(pages, WIDTHS, dark, tmp_path_factory.mktemp("browser"))


def ink(pixels, ground):
    """Share of the pixels that differ from the page's ground."""
    return (abs(pixels.astype(int) - ground).max(-1) > 24).mean()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["within a budget", "many sites", "without a budget", "never measured"])
def test_page_is_legible(seen, name, width):
    dark, views = seen
    view = views[name, width]
    ground = view.pixels[0, 0]
    assert (ground.max() < 48) if dark else (ground.min() > 207)
    assert 0.02 < ink(view.pixels, ground) < 0.6
    assert view.wide == view.fits == width
    assert view.words > 20 and view.overlaps == view.outside == []
    assert view.height > 1000


@pytest.mark.parametrize("width", WIDTHS)
def test_a_broken_page_is_seen(seen, width):
    _, views = seen
    broken, blank = views["broken", width], views["blank", width]
    assert broken.wide > width and ["one label", "another label"] in broken.overlaps and broken.outside == OUTSIDE
    assert ink(blank.pixels, blank.pixels[0, 0]) == 0 and blank.words == 0
