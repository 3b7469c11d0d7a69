"""The guide is built strictly, loads nothing from elsewhere, and is served under /help; pages link to pages of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from app.main import create_app
from app.settings import ROOT
from app.web import guide, guide_texts
from tools.docs_hooks import Checker

DECISION = re.compile(r"\d{4}-")
PAGES = sorted(page for page in ROOT.glob("docs/**/*.md") if not DECISION.match(page.name))
HELP = re.compile(r"{% block help %}(.*?){% endblock %}|href=\"/help/([^\"{]*)\"")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide as it stands."""
    out = tmp_path_factory.mktemp("help")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(out)))
    return out


def build_small(folder: Path, text: str, nav: list[str]) -> None:
    """Build a guide of one page with `text`, by the settings of the whole one."""
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "docs" / "index.md").write_text(f"# Small\n\n## There\n\n{text}\n")
    config = load_config(
        str(ROOT / "mkdocs.yml"),
        docs_dir=str(folder / "docs"),
        site_dir=str(folder / "help"),
        nav=[{"All": nav}],
        plugins=["search"],
    )
    build(config)


class TestBuild:
    def test_every_page_of_docs_is_in_it(self, built: Path) -> None:
        names = [page.relative_to(ROOT / "docs").with_suffix("") for page in ROOT.glob("docs/**/*.md")]
        missing = [name for name in names if name.name != "index" and not (built / name / "index.html").exists()]
        assert len(names) > 20
        assert missing == []

    def test_the_first_page_of_decisions_links_to_each(self, built: Path) -> None:
        text = (built / "decisions" / "index.html").read_text().partition("<article")[2].partition("</article")[0]
        linked = re.findall(r'<li><a href="(\d{4}-[^"/]+)/">', text)
        assert linked == [page.stem for page in sorted(ROOT.glob("docs/decisions/[0-9]*.md"))]

    def test_what_is_sound_builds(self, tmp_path: Path) -> None:
        build_small(tmp_path, "[Here](#there)", ["index.md"])
        assert (tmp_path / "help" / "index.html").exists()

    @pytest.mark.parametrize("link", ["nowhere.md", "#nowhere", "index.md#nowhere", "../README.md", "/help/"])
    def test_a_broken_link_fails_it(self, tmp_path: Path, link: str) -> None:
        with pytest.raises(Abort):
            build_small(tmp_path, f"[Elsewhere]({link})", ["index.md"])

    def test_a_page_that_the_navigation_leaves_out_fails_it(self, tmp_path: Path) -> None:
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "more.md").write_text("# More\n")
        with pytest.raises(Abort):
            build_small(tmp_path, "", ["index.md"])
        build_small(tmp_path, "", ["index.md", "more.md"])

    @pytest.mark.parametrize(
        ("html", "named"),
        [
            ('<p style="color: red">Red</p>', "style= in <p>"),
            ('<img src="https://example.org/a.png" alt="">', "https://example.org/a.png of <img>"),
            ('<button onclick="go()">Go</button>', "onclick= in <button>"),
        ],
    )
    def test_what_the_server_would_block_fails_it(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, html: str, named: str
    ) -> None:
        with pytest.raises(Abort):
            build_small(tmp_path, html, ["index.md"])
        assert f"the server would block {named}" in caplog.text

    def test_nothing_is_inline_or_from_elsewhere(self, built: Path) -> None:
        for page in built.rglob("*.html"):
            checker = Checker()
            checker.feed(page.read_text())
            assert checker.problems == [], page

    def test_the_licence_of_the_theme_comes_with_it(self, built: Path) -> None:
        assert "Martin Donath" in (built / "assets" / "LICENSE").read_text()

    def test_the_benchmarks_are_those_of_the_results(self, built: Path) -> None:
        text = (built / "benchmarks" / "index.html").read_text()
        titles = re.findall(r"^## (.+)$", (ROOT / "bench" / "RESULTS.md").read_text(), re.MULTILINE)
        found = re.findall(r"<h2 id=\"[^\"]*\">(.*?)<a", text)
        assert len(found) == len(titles) > 5

    def test_only_pictures_that_pages_show_are_in_it(self, built: Path) -> None:
        html = "".join(page.read_text() for page in built.rglob("*.html"))
        pictures = [one for one in built.rglob("*.png") if "assets" not in one.parts]
        assert [one.name for one in pictures if one.name not in html] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_the_first_paragraph_says_for_whom_the_page_is(page: Path) -> None:
    title, first = page.read_text().split("\n\n")[:2]
    assert title.startswith("# ")
    assert first.lstrip("*").startswith("For ")


class TestServed:
    def test_pages_and_files(self, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guide, "FOLDER", built)
        client = TestClient(create_app(), base_url="http://127.0.0.1:8000")
        page = client.get("/help/glossary/")
        assert page.status_code == 200
        assert "accepted rationale" in page.text
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert client.get("/help").url.path == "/help/"
        assert client.get("/help/search/search_index.json").json()["docs"]
        script = re.search(r'<script src="\.\./(assets/inline/[^"]+)"', page.text)
        assert script is not None
        assert client.get(f"/help/{script[1]}").status_code == 200
        missing = client.get("/help/nowhere/")
        assert missing.status_code == 404
        assert "There is no such page." in missing.text


class TestNotBuilt:
    @pytest.fixture
    def client(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
        monkeypatch.setattr(guide, "FOLDER", tmp_path / "none")
        return TestClient(create_app(), base_url="http://127.0.0.1:8000")

    def test_help_lists_every_page_and_says_how_to_build_them(self, client: TestClient) -> None:
        page = client.get("/help/")
        assert page.status_code == 200
        assert "run `make docs`" in page.text
        linked = set(re.findall(r'<li><a href="/help/([^"]+)/">', page.text))
        paths = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in ROOT.glob("docs/**/*.md")}
        assert linked == {path.removesuffix("/index") for path in paths - {"index"}}

    def test_each_page_is_there_and_its_links_lead_to_others(self, client: TestClient) -> None:
        """As the built guide has them: where it is built later, all addresses stay."""
        pages = {path: client.get(path) for path in all_addresses(client)}
        assert {answer.status_code for answer in pages.values()} == {200}
        anchors = {path: set(re.findall(r'<h\d id="([^"]+)"', answer.text)) for path, answer in pages.items()}
        wrong = []
        for path, answer in pages.items():
            for target in re.findall(r'<a href="([^"]*)"', answer.text.partition("<article")[2]):
                page, _, anchor = target.partition("#")
                page = (page or path) if (page or path) != "/help/" else ""
                if page and (page not in pages or (anchor and anchor not in anchors[page])):
                    wrong.append((path, target))
        assert wrong == []

    def test_a_page_reads_as_it_is_written(self, client: TestClient) -> None:
        text = client.get("/help/leads/").text
        assert '<h1 id="for-leads">For leads</h1>' in text
        assert '<h2 id="roles">Roles</h2>' in text
        assert '<th scope="col">role</th>' in text
        assert "<em>For people who run a project:" in text
        assert '<a href="/help/security/">Security</a>' in text
        code = "git clone ADDRESS illume &amp;&amp; cd illume\nmake demo\n"
        assert f'<pre tabindex="0"><code class="language-sh">{code}</code></pre>' in client.get("/help/start/").text

    @pytest.mark.parametrize("path", ["/help/nowhere/", "/help/..%2FREADME/", "/help/screens/annotate-light.png"])
    def test_what_is_no_page_is_not_found(self, client: TestClient, path: str) -> None:
        answer = client.get(path)
        assert answer.status_code == 404
        assert "There is no such page." in answer.text

    def test_an_installation_without_the_pages_says_where_they_are(
        self, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(guide_texts, "DOCS", tmp_path / "none")
        page = client.get("/help/")
        assert page.status_code == 200
        for words in ("`make docs` builds it", "`make dist` puts it into the wheel", "built by the Dockerfile"):
            assert words in page.text
        assert client.get("/help/leads/").status_code == 404


def all_addresses(client: TestClient) -> list[str]:
    """The pages that the list of all links to."""
    return re.findall(r'<li><a href="(/help/[^"]+)">', client.get("/help/").text)


def to_html(text: str) -> str:
    """The text as a page among those of `docs/data`."""
    return guide_texts.to_html(text, ROOT / "docs" / "data" / "exports.md")


class TestToHtml:
    @pytest.mark.parametrize(
        ("heading", "anchor"),
        [("Before the first verdict", "before-the-first-verdict"), ("A `val` split: how?", "a-val-split-how")],
    )
    def test_anchors_are_those_of_the_built_guide(self, heading: str, anchor: str) -> None:
        assert to_html(f"## {heading}").startswith(f'<h2 id="{anchor}">')

    def test_html_is_shown_as_text_and_comments_are_left_out(self) -> None:
        assert to_html("<script>go()</script>") == "<p>&lt;script&gt;go()&lt;/script&gt;</p>\n"
        assert to_html("2<sup>3</sup><!-- a\ncomment -->") == "<p>2&lt;sup&gt;3&lt;/sup&gt;</p>\n"

    def test_a_table_has_a_frame_and_no_style(self) -> None:
        html = to_html("| a | b | |\n|---|--:|---|\n| `x` | y \\| z | |")
        assert html.startswith('<div class="table-frame" tabindex="0"><table>\n<thead>')
        assert html.endswith("</table></div>\n")
        assert '<th scope="col">b</th>\n<td></td>' in html
        assert "<td><code>x</code></td>\n<td>y | z</td>" in html

    @pytest.mark.parametrize(
        ("link", "shown"),
        [
            ("[Roles](../leads.md#roles)", '<a href="/help/leads/#roles">Roles</a>'),
            ("[All](../decisions/index.md)", '<a href="/help/decisions/">All</a>'),
            ("[Imports](imports.md)", '<a href="/help/data/imports/">Imports</a>'),
            ("[Above](#above)", '<a href="#above">Above</a>'),
            ("[The `README`](../../README.md)", "The <code>README</code> (../../README.md)"),
            ("[Site](https://example.org/a.md) *now*", "Site (https://example.org/a.md) <em>now</em>"),
            ("<https://example.org/>", "https://example.org/"),
            ("[Go](javascript:go)", "[Go](javascript:go)"),
        ],
    )
    def test_links_lead_to_pages_of_the_guide_or_are_text(self, link: str, shown: str) -> None:
        assert to_html(link) == f"<p>{shown}</p>\n"

    def test_sections_of_other_files_are_included(self) -> None:
        html = to_html('a\n\n--8<-- "bench/RESULTS.md:simulation"\n\nb')
        assert "<table>" in html
        assert "--8" not in html

    def test_pictures_are_left_out(self) -> None:
        assert to_html("a\n\n![One](one.png)\n![Two](two.png)\n\nb") == "<p>a</p>\n<p>b</p>\n"

    def test_code_shows_nothing_that_is_for_tests(self) -> None:
        html = to_html("* a\n  ```sh no-test needs Docker\n  <b>\n  ```")
        assert '<pre tabindex="0"><code class="language-sh">&lt;b&gt;\n</code></pre>' in html
        assert "no-test" not in html


def test_pages_link_to_pages_of_the_guide() -> None:
    texts = [page.read_text() for page in ROOT.glob("templates/**/*.html")]
    linked = {first or second for text in texts for first, second in HELP.findall(text)}
    assert "" in linked
    for address in linked - {""}:
        name, _, anchor = address.partition("#")
        page = ROOT / "docs" / f"{name.rstrip('/')}.md"
        assert page.exists(), address
        headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
        assert not anchor or anchor in {re.sub(r"[^\w]+", "-", one.lower()).strip("-") for one in headings}, address
