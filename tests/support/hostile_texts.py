"""Texts that a terminal would obey or hide, markup and emoji codes of rich, and ordinary text that must stay."""

import unicodedata

# Every control, format, surrogate and separator character that is no part of ordinary text.
KEPT = {"\u200c", "\u200d"}  # joiners, after a letter that is not ASCII
SIGNS = {chr(code) for code in (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD)}
SIGNS |= {chr(code) for code in range(0x13430, 0x13440)}  # hieroglyphs
HIDDEN = [
    character
    for character in map(chr, range(0x110000))
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in KEPT | SIGNS
]
SEQUENCES = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
    "\x9b2J",
    "\x1b[2J\x1b[H",
    "a\rb",
    "a\bb\x7f",
    "\u202eabc\u202c\u2066d\u2069",
    "a\u200bb\ufeffc\u2060",
    "\udc80\ud83d",
    "a\u2028b\u2029c\x85d",
    "\U000e0041\U000e0042",
]
HOSTILE = " ".join(SEQUENCES)
MARKUP = "[red]x[/red] [/] [bold :smile: [link=http://a]b[/link] :skull:"
ORDINARY = [
    "Plain words, 100 %.",
    "naïve Ärger Œuvre",
    "می\u200cخواهم",  # Persian  # noqa: RUF001
    "क्\u200dष श्री\u200cमान",  # Hindi
    "👩\u200d👩\u200d👧 ❤️ 👍🏽 🏳️\u200d🌈",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England
    "日本語　全角 한국어 ไทย עברית العربية ქართული",
    "e\u0301 \u00a0 \ue000",
]
