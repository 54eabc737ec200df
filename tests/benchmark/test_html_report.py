"""report.html: one page that stands alone; what a browser shows on a phone, at a desk, on paper, without scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmark.html_report import html_report
from tests.benchmark.example_results import classification, example_results, generation, measurement

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip

POLICY = r'<meta http-equiv="Content-Security-Policy"[^>]*>'


def only(**changes: Any) -> dict[str, Any]:
    return example_results({**measurement(), **changes})


RESULTS = {
    "one package": example_results(),
    "two packages on two targets": example_results(measurement(), measurement("small", "cuda", slower=0.3)),
    "an encoder": only(generation=[], quality={"spam": {"accuracy": 0.9}}),
    "no adapters": only(generation=[generation(None)], classification=[], quality={}),
    "one batch size": only(
        generation=[generation(None), generation("blurbs")], classification=[classification("spam")]
    ),
    "nothing": {**example_results(), "measurements": []},
}


class Elements(HTMLParser):
    """Tags and their attributes, and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self._in_cell = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self._in_cell += 1
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell -= tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


@pytest.mark.parametrize("results", RESULTS.values(), ids=RESULTS.keys())
def test_the_page_stands_alone(results: dict[str, Any]) -> None:
    """No script, nothing from outside, ids that are unique and references that lead somewhere; twice the same text."""
    text = html_report(results)
    assert text == html_report(results)
    page = Elements(text)
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags and "link" in tags and tags.count("h1") == 1
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attributes)
    assert "url(http" not in text and "@import" not in text
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert targets and set(targets) <= set(ids)
    figures = sum(tag == "figure" for tag in tags)
    assert figures == sum(tag == "figcaption" for tag in tags) == sum(tag == "svg" for tag in tags)


def test_names_are_no_html() -> None:
    page = html_report(example_results(measurement('<script>alert("1")</script>&')))
    assert "<script" not in page and "&lt;script&gt;" in page


def test_numbers_stand_in_the_tables() -> None:
    """Latencies, what is missing with its reason, targets that are absent with the command."""
    cells = Elements(html_report(example_results())).cells
    run = generation("blurbs", 4, 1.1, 0.55 * 13 * 4**0.7)
    assert f"{run['tpot_ms']['p90']:#.3g}" in cells
    assert "n/a: needs 1,000 samples, has 20" in cells
    assert 'pip install -c constraints.txt -e ".[cuda]"' in cells
    assert {"spam", "intent_pt", "blurbs", "(base)", "accuracy", "0.975"} <= set(cells)


def browse(tmp_path: Path, page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the browser; what the page says on its console stands in stderr."""
    assert BROWSER is not None
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [BROWSER, *FLAGS, profile, "--enable-logging=stderr", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(tmp_path: Path, width: int) -> None:
    """Not blank, coloured where the plots are, no error on the console, nothing wider than the screen."""
    from PIL import Image

    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(html_report(RESULTS["two packages on two targets"]), encoding="utf-8")
    run = browse(tmp_path, page, f"--screenshot={shot}", f"--window-size={width},5000")
    assert "CONSOLE" not in run.stderr
    picture = Image.open(shot).convert("RGB")
    assert picture.size == (width, 5000)
    pixels = width * 5000
    counts = {colour: count for count, colour in picture.getcolors(pixels) or []}
    assert 0.5 < counts[255, 255, 255] / pixels < 0.98
    assert counts[0, 114, 178] > 200  # the first colour of the plots
    # the page forbids scripts, so the copy that measures itself goes without that policy
    measuring = re.sub(POLICY, "", page.read_text(encoding="utf-8"))
    measuring += "<script>document.title = `width ${document.documentElement.scrollWidth} of ${innerWidth}`</script>"
    copy = tmp_path / "copy.html"
    copy.write_text(measuring, encoding="utf-8")
    found = re.search(
        r"<title>width (\d+) of (\d+)", browse(tmp_path, copy, "--dump-dom", f"--window-size={width},900").stdout
    )
    assert found is not None and int(found[1]) <= int(found[2])


@needs_browser
@pytest.mark.parametrize("allowed", [False, True])
def test_tables_need_no_script(tmp_path: Path, allowed: bool) -> None:
    """The page's policy switches scripts off, and its tables are there; without the policy the script takes them."""
    text = html_report(example_results())
    assert Elements(text).cells
    page = tmp_path / "report.html"
    attack = "<script>document.querySelectorAll('table').forEach(table => table.remove())</script>"
    attacked = text.replace("</main>", f"{attack}</main>")
    page.write_text(re.sub(POLICY, "", attacked) if allowed else attacked, encoding="utf-8")
    run = browse(tmp_path, page, "--dump-dom")
    assert Elements(run.stdout).cells == ([] if allowed else Elements(text).cells)
    assert ("Content Security Policy" in run.stderr) != allowed


@needs_browser
def test_paper_has_all_of_it(tmp_path: Path) -> None:
    page, paper = tmp_path / "report.html", tmp_path / "report.pdf"
    page.write_text(html_report(example_results()), encoding="utf-8")
    browse(tmp_path, page, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 20_000
