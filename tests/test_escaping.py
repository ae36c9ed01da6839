"""No text from outside opens a tag, a link or a heading, or commands a terminal."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kn_bench.results import escaping, tables

HOSTILE = (
    "<script>alert(1)</script> | x \x1b[31mred\x1b[0m [click](javascript:alert(1)) "
    "<img src=x onerror=alert(1)>\n\n# Injected heading\n\n&lt;b&gt; \u202egnp.exe"
)


def test_a_hostile_text_in_each_medium():
    assert escaping.markdown(HOSTILE) == (
        "&lt;script>alert(1)&lt;/script> \\| x \\\\x1b[31mred\\\\x1b[0m "
        "[click\\](javascript&#58;alert(1)) &lt;img src=x onerror=alert(1)> "
        "# Injected heading &amp;lt;b&amp;gt; \\\\u202egnp.exe"
    )
    assert "<" not in escaping.html(HOSTILE)
    assert escaping.terminal("a\x1b[2J\x07b\nc") == "a\\x1b[2J\\x07b c"
    assert escaping.terminal("a\nb\tc\r", lines=True) == "a\nb\tc\\x0d"
    assert escaping.csv("=HYPERLINK(1)") == "'=HYPERLINK(1)"


@pytest.mark.parametrize(
    "text",
    ["0.93 [0.88, 0.97] n=120", "rome_no_c", "< 0.001", "54% [48%, 57%]", "–", "A & B", "Zürich"],
)
def test_what_is_harmless_stays(text):
    assert escaping.markdown(text) == text
    assert escaping.terminal(text) == text


@pytest.mark.parametrize("text", ["-0.5", "+3", "1e-3", "-.5"])
def test_a_number_is_no_formula(text):
    assert escaping.csv(text) == text


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


@given(st.text(st.sampled_from("<>&;#/!?abx\"'\x1b\n\u2028\u202e|[](`*_:ü ")))
def test_html_shows_the_text_and_nothing_else(text):
    parser = _Tags()
    parser.feed(f"<p>{escaping.html(text)}</p>")
    parser.close()
    assert parser.tags == ["p"]
    assert parser.text == escaping.terminal(text)


@given(st.text())
def test_no_line_end_and_no_control_character_is_left(text):
    for escape in (escaping.terminal, escaping.markdown, escaping.html, escaping.csv):
        shown = escape(text)
        assert len(shown.splitlines()) <= 1
        assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in shown)


@given(st.text(st.sampled_from("|\\a` \n")))
def test_a_cell_stays_one_cell(text):
    row = tables.markdown(("a", "b"), [(text, "end")]).splitlines()[2]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3


def test_a_bar_in_a_header_does_not_split_the_table():
    text = tables.markdown(("group", "|KN|", "R1²"), [("a", 3, 0.5)])
    head, rule, row = text.splitlines()
    assert head.replace("\\|", "").count("|") == rule.count("|") == row.count("|") == 4
    assert "\\|KN\\|" in head
