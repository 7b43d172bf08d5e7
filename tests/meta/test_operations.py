"""The page of supported operations says what the registries say, and every lowered operation has a rule."""
from __future__ import annotations

import re

import verifier.ops as ops
from docs.operations import PAGE, page
from verifier.graph import ir


def test_the_page_is_what_the_registries_say() -> None:
    assert PAGE.read_text() == page(), "run python -m docs.operations"


def test_the_vocabulary_of_the_graph_and_the_rules_agree() -> None:
    """Each operation in the table of graph/ir.py has a rule, and each rule is in that table."""
    cells = [line.split("|")[1] for line in ir.__doc__.splitlines() if line.startswith("| ")]
    names = {name for cell in cells for name in re.findall(r"\b[A-Z]\w+", re.sub(r"\(.*?\)|:.*", "", cell))} - {"Input"}
    assert names == set(ops.registered_ops())
