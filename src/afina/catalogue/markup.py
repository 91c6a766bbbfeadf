"""HTML in a product's text -> the text that a reader would see.

Comes in: a text whose entities are unescaped. Goes out: the text without tags. What only looks like a tag stays:
"a < b", "<3", "x <b and y> c". A tag is a known element's name, with attributes or none, that is closed or runs to the
end of the text, as in the scraped title `<span class="a-size-medium`. Those are read by a real parser (lexbor).
"""

from __future__ import annotations

import re

from afina.catalogue.libraries import library

# Elements that begin a line of their own, or leave a gap, where a reader sees them.
BLOCKS = (
    "address|article|aside|blockquote|br|center|dd|div|dl|dt|fieldset|figcaption|figure|footer|form|h[1-6]|header|hr|"
    "img|li|main|nav|ol|p|pre|section|table|tbody|td|tfoot|th|thead|tr|ul"
)
INLINE = (
    "a|abbr|acronym|b|bdi|bdo|big|body|button|cite|code|data|del|dfn|em|embed|font|head|html|i|iframe|input|ins|kbd|"
    "label|link|map|mark|meta|nobr|noscript|o:p|object|option|param|q|s|samp|script|select|small|source|span|st1:[a-z]+|"
    "strike|strong|style|sub|sup|svg|time|title|tt|u|var|video|wbr"
)
SILENT = ["script", "style"]  # what they hold is for no reader
MAYBE_TAG = re.compile(r"<[A-Za-z/!]")
_ATTRIBUTE = r"""\s+[\w:@.-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+)"""
_BARE = r"\s+(?:checked|compact|disabled|hidden|itemscope|noshade|nowrap|selected)"
TAG = re.compile(
    rf"</?(?:(?P<block>{BLOCKS})|{INLINE})"
    rf"(?:(?:{_ATTRIBUTE}|{_BARE})*\s*/?>"  # closed
    rf"|(?:{_ATTRIBUTE})+\s*/?\Z"  # cut behind an attribute
    rf"""|(?:{_ATTRIBUTE})*\s+[\w:-]+\s*=\s*(?:"[^"]*|'[^']*)\Z)"""  # cut within one
    r"|<!doctype[^<>]*>",
    re.IGNORECASE,
)


def strip_markup(text: str) -> str:
    """The text a reader sees; the text itself where it holds no tag. White space is left for others to normalise."""
    if "<" not in text or not MAYBE_TAG.search(text):
        return text
    text = _without_comments(text)
    pieces: list[str] = []
    place = 0
    for match in TAG.finditer(text):
        gap = " " if match["block"] else ""
        pieces += [_literal(text[place : match.start()]), gap, match.group()]
        place = match.end()
    if not pieces:
        return text
    parser = library("selectolax.lexbor").LexborHTMLParser("".join([*pieces, _literal(text[place:])]))
    parser.strip_tags(SILENT, recursive=True)
    # A tag cut short is dropped by the parser, and a document of nothing else has no root.
    return parser.root.text() if parser.root is not None else ""


def _without_comments(text: str) -> str:
    """Looked for by hand: a pattern would read to the end of the text for every beginning without an end."""
    pieces: list[str] = []
    place = 0
    while (begin := text.find("<!--", place)) >= 0 and (end := text.find("-->", begin + 4)) >= 0:
        pieces.append(text[place:begin])
        place = end + 3
    return "".join([*pieces, text[place:]])


def _literal(text: str) -> str:
    """A text between tags, so that the parser gives it back unchanged."""
    return text.replace("\x00", "").replace("\r", " ").replace("&", "&amp;").replace("<", "&lt;")
