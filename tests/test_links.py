"""The pages' links and paths lead somewhere: files, folders and headings that are there."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.conftest import ROOT
from website.reference import MADE

FILES = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split("\n")
PAGES = [name for name in FILES if name.endswith(".md")]


def headings(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    here = ROOT / page
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", here.read_text("utf-8")):
        path, _, heading = link.partition("#")
        target = (here.parent / path).resolve() if path else here
        if target.parent == ROOT / "docs" and target.name in MADE:
            continue  # `make docs` makes it, and checks the link
        assert target.exists(), f"{page} links to {link}"
        assert not heading or heading in headings(target.read_text("utf-8")), f"{page} links to {link}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_paths_are_there(page):
    """Paths from the top, as `results/speed/h100.txt`; the changelog may tell of files that are gone."""
    text = (ROOT / page).read_text("utf-8")
    for path in re.findall(r"`((?:results|benchmarks|docs|examples|recipes|src|tests)/[^`\s]*)`", text):
        assert any(ROOT.glob(path.rstrip("/"))), f"{page} names {path}"


def test_every_page_is_read():
    assert {"README.md", "ARCHITECTURE.md", "docs/results.md", "benchmarks/README.md"} <= set(PAGES)
