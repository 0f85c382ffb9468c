"""The page of an inventory: which weights a model stores, in how many bytes, and how."""

from __future__ import annotations

from collections.abc import Iterator

from mlopt.coreml.inspection import Inventory, StoredWeight
from mlopt.pages.bars import Bytes, bytes_chart, bytes_plain
from mlopt.pages.document import Section, document
from mlopt.pages.html import Column, Fact, Markup, facts, figure, key, link, table
from mlopt.text.words import counted, human_bytes, percent

_USERS = 2
"""Operations that read a weight which are named; others are counted."""


def inventory_page(inventory: Inventory, *, title: str | None = None) -> str:
    """Return a page of HTML on the weights of a model, as :func:`plan_page` does on a plan.

    Parameters
    ----------
    inventory
        What :func:`mlopt.coreml.inspection.inspect_weights` returns; rows are in its order.
    title
        The heading; None: the number of weights and their bytes.

    Raises
    ------
    ConfigError
        matplotlib, which draws the charts, is not installed.
    """
    size = human_bytes(inventory.bytes_in_all)
    heading = f"{counted(inventory.weights_in_all, 'weight')}, {size}"
    return document(
        title or heading,
        f"What a model stores in {size}, weight by weight.",
        head=[facts(list(_facts(inventory)))],
        sections=list(_sections(inventory)),
    )


def _facts(inventory: Inventory) -> Iterator[Fact]:
    rows, left_out = inventory.rows, inventory.weights_in_all - len(inventory.rows)
    plain = sum(map(_plain, rows))
    shown = f"{left_out} of them not on this page" if left_out else "all of them on this page"
    yield Fact("Weights", str(inventory.weights_in_all), shown)
    yield Fact("Bytes of all weights", human_bytes(inventory.bytes_in_all), "as they are stored")
    note = f"of {human_bytes(plain)} as plain elements"
    yield Fact("Bytes on this page", human_bytes(inventory.nbytes), note)
    size = sum(row.size for row in rows)
    if size:
        yield Fact("Bits of an element", f"{8 * inventory.nbytes / size:.2f}", "tables counted")
    done = [row for row in rows if row.compression is not None]
    share = percent(sum(row.size for row in done) / size) if size else "0 %"
    yield Fact("Compressed", counted(len(done), "weight"), f"{share} of the elements")
    yield Fact("Deployment target", inventory.target, "the oldest that loads the model")


def _sections(inventory: Inventory) -> Iterator[Section]:
    if inventory.rows:
        rows = [Bytes(row.name, _plain(row), row.nbytes) for row in inventory.rows]
        swatches = [("as plain elements", "before", ""), ("as stored", "accent", "")]
        table_link = link("weights-table", "The table of all weights")
        caption = Markup(f"The largest weights. {table_link} has all.")
        chart = figure(bytes_chart("bytes-chart", rows), caption, legend=key(swatches))
        yield Section.of("bytes", "Where the bytes are", chart)
        yield Section.of("weights", "All weights", _table(inventory))


def _table(inventory: Inventory) -> Markup:
    total = max(inventory.nbytes, 1)
    has_statistics = all(row.distinct is not None for row in inventory.rows)
    columns = [
        Column("Weight"),
        Column("Shape"),
        Column("Elements of"),
        Column("Bytes", is_number=True),
        Column("Of all", is_number=True),
        *(
            [Column("Distinct", is_number=True), Column("Zeros", is_number=True)]
            if has_statistics
            else []
        ),
        Column("Bits", is_number=True),
        Column("Stored as"),
        Column("Read by"),
    ]
    rows = []
    for row in inventory.rows:
        statistics = (
            [f"{row.distinct:,}", f"{100 * (row.sparsity or 0.0):.1f} %"] if has_statistics else []
        )
        rows.append(
            [
                row.name,
                "x".join(map(str, row.shape)) or "scalar",
                row.dtype,
                human_bytes(row.nbytes),
                f"{100 * row.nbytes / total:.1f} %",
                *(statistics if has_statistics else []),
                f"{8 * row.nbytes / row.size:.2f}" if row.size else "",
                "as it is" if row.compression is None else row.compression.short,
                _users(row),
            ]
        )
    return table("weights-table", "Weights of the model", columns, rows)


def _users(row: StoredWeight) -> str:
    more = len(row.consumers) - _USERS
    shown = ", ".join(row.consumers[:_USERS])
    return f"{shown} and {more} more" if more > 0 else shown


def _plain(row: StoredWeight) -> int:
    return bytes_plain(row.size, row.dtype)
