"""Each line of the checker's rules and of its accounting is needed: with the line changed, a certificate of a false claim is accepted."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.soundness.lines import LINES, Line, change
from tests.soundness.pools import Item, pool

QUICK = ("reduce:_Builder.activate: error[own] = 0", "arithmetic:gamma", "reduce:_Builder.off", "reduce:_Builder.finish", "bound:_over_box")
"""How the names of rows begin that the quick suite runs."""


@dataclass
class Pools:
    """Pools, made as far as they were needed and kept."""

    folder: Path
    made: dict[str, tuple[list[Item], Iterator[Item]]] = field(default_factory=dict)

    def items(self, name: str) -> Iterator[Item]:
        """All of a pool; what was made before comes first."""
        done, rest = self.made.setdefault(name, ([], pool(name, self.folder / name)))
        yield from list(done)
        for item in rest:
            done.append(item)
            yield item


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Pools:
    return Pools(tmp_path_factory.mktemp("pools"))


def rows() -> list:
    return [pytest.param(line, marks=[] if line.name.startswith(QUICK) else pytest.mark.slow, id=line.name) for line in LINES]


@pytest.mark.parametrize("line", rows())
def test_a_changed_line_is_seen(line: Line, pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    change(line, monkeypatch)
    assert next((item.name for item in pools.items(line.seen) if item.accepted()), None) is not None


def test_a_row_that_is_out_of_date_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="out of date"):
        change(Line("bound:minimum", "no such line", "", "twins"), monkeypatch)
