"""Every block of code in the docs is run by a test or says why not, and every command in them exists."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from app.cli.main import COMMANDS, load_command
from app.cli.method import LibraryCommand
from app.settings import ROOT
from tests.docs.blocks import PAGES, RUN, SHOWN, Block, blocks, commands, snippets

BLOCKS = [block for page in PAGES for block in blocks(page)]
TESTS = {
    "docs/data/erasing.md": "tests/docs/test_curl_pages.py",
    "docs/data/webhooks.md": "tests/docs/test_curl_pages.py",
    "docs/tokens.md": "tests/docs/test_curl_pages.py",
    "docs/deploying.md": "tests/docs/test_walk.py",
    "docs/own-data.md": "tests/docs/test_walk.py",
    "docs/rest.md": "tests/docs/test_rest_page.py",
    "docs/client.md": "tests/docs/test_client_page.py",
    "docs/data/exports.md": "tests/docs/test_exports_page.py",
    "docs/library.md": "tests/illume/test_library_script.py",
}
"""The tests that run the blocks of a page."""

TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def unknown(words: list[str]) -> str | None:
    """What there is not of the words of an `illume` command; None where all is known."""
    if not words or words[0] not in COMMANDS:
        return f"command {' '.join(words[:1])}"
    command = load_command(words[0])
    rest = words[1:]
    while isinstance(command, click.Group):
        name, *rest = [word for word in rest if not word.startswith("-")][:1] + rest[1:] or [""]
        if name not in command.commands:
            return f"command {words[0]} {name}"
        command = command.commands[name]
    if isinstance(command, LibraryCommand):
        return None  # its arguments are the library's
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = (word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word))
    return next((f"option {option}" for option in given if option not in known | {"--help", "-h"}), None)


class TestBlocks:
    def test_each_names_its_language(self) -> None:
        assert [str(block) for block in BLOCKS if block.language not in (*RUN, *SHOWN)] == []

    def test_each_is_run_or_says_why_not(self) -> None:
        code = [block for block in BLOCKS if block.language in RUN]
        assert [str(block) for block in code if block.reason is None and block.page not in TESTS] == []
        assert [str(block) for block in code if block.reason is not None and len(block.reason.split()) < 2] == []

    def test_reasons_name_tests_that_exist(self) -> None:
        named = {path for block in BLOCKS for path in re.findall(r"tests/[\w/.]+", block.reason or "")}
        assert named
        assert [path for path in sorted(named) if not (ROOT / path).exists()] == []

    @pytest.mark.parametrize("page", TESTS)
    def test_the_test_of_a_page_reads_its_blocks(self, page: str) -> None:
        test = (ROOT / TESTS[page]).read_text()
        assert Path(page).name in test
        assert "snippets(" in test
        assert any(block.page == page and block.reason is None for block in BLOCKS)

    def test_python_is_python(self) -> None:
        for block in BLOCKS:
            if block.language == "python":
                compile(block.code, str(block), "exec")


class TestCommands:
    def test_those_of_illume_exist_with_their_options(self) -> None:
        shell = [block for block in BLOCKS if block.language == "sh"]
        wrong = [
            (str(one), lacks) for one in shell for words in commands(one.code, "illume") if (lacks := unknown(words))
        ]
        assert wrong == []

    def test_those_of_make_exist(self) -> None:
        shell = [block for block in BLOCKS if block.language == "sh"]
        named = {(str(block), word) for block in shell for words in commands(block.code, "make") for word in words}
        assert [one for one in sorted(named) if "=" not in one[1] and one[1] not in TARGETS] == []

    @pytest.mark.parametrize(
        ("words", "lacks"),
        [
            ("import birds a.jsonl --split val", None),
            ("user add a@example.org --role admin", None),
            ("simulate --out run --anything", None),
            ("feed birds", "command feed"),
            ("user invite a@example.org", "command user invite"),
            ("import birds a.jsonl --spilt val", "option --spilt"),
        ],
    )
    def test_what_is_unknown_is_found(self, words: str, lacks: str | None) -> None:
        assert unknown(words.split()) == lacks


class TestReading:
    def test_blocks_with_language_and_reason(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        page = tmp_path / "page.md"
        page.write_text(
            "a\n```sh no-test needs Docker\nmake x\n```\n\n```sh\nmake \\\n  demo # y\n```\n```text\nz\n```\n"
        )
        monkeypatch.setattr("tests.docs.blocks.ROOT", tmp_path)
        assert [(block.line, block.language, block.reason) for block in blocks(page)] == [
            (2, "sh", "needs Docker"),
            (6, "sh", None),
            (10, "text", None),
        ]
        [code] = snippets(page, "sh")
        assert list(commands(code, "make")) == [["demo"]]
        assert isinstance(blocks(page)[0], Block)
