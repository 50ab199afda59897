# SPDX-License-Identifier: Apache-2.0
"""The settings as a section of packetwatch.conf(5), in mdoc. Pure; the page around it is written by hand."""

from __future__ import annotations

import itertools

from packetwatch.settings import Row, describe

BEGIN = '.\\" The settings from here on are made by packetwatch.manual.\n'
END = '.\\" The settings end here.\n'


def settings() -> str:
    """Every setting by section, in the order of the sample file."""
    return "".join(
        f".Ss [{name}]\n.Bl -tag -width Ds\n{''.join(map(_row, rows))}.El\n"
        for name, rows in itertools.groupby(describe(), key=lambda row: row.section)
    )


def renewed(page: str) -> str:
    """The page with the settings as they are now. Raises ValueError where it lacks a mark."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the page lacks the marks of the settings")
    return before + BEGIN + settings() + END + after


def _row(row: Row) -> str:
    lines = [
        f".It Ic {row.name}",
        *_sentences(row.help),
        f"{_text(row.type[0].upper() + row.type[1:])};",
        f"default: {_text(row.default)}." if row.default else "by default there is none.",
        *([] if row.live else ["A change needs a restart."]),
        "On the command line and in the environment:",
        f".Fl {row.flag[1:]} ,",
        f".Ev {row.variable} .",
    ]
    return "\n".join(lines) + "\n"


def _sentences(text: str) -> list[str]:
    """Each on a line of its own, so that roff sets the space between them."""
    return _text(text).replace(". ", ".\n").split("\n")


def _text(text: str) -> str:
    """Safe as the beginning of a roff line, and with nothing roff would take as its own."""
    escaped = text.replace("\\", "\\e")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped
