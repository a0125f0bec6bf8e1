"""Maps of bits: which layer got how many, for every artifact that is a mix."""

from collections.abc import Iterable

from qsweep.results.assignment import Assignment, assignment_in, bits_text
from qsweep.results.columns.table import PPL_RATIO
from qsweep.results.html.bits_map import Domain, Map, bits_domain, spec
from qsweep.results.html.data import Group, front
from qsweep.results.html.panel import Panel
from qsweep.results.record import Row

# Maps that are seen at once, and those that are folded away below them; of more there are words.
_SHOWN, _FOLDED = 6, 10
_NOTE = (
    "Colour: stored bits per weight, on one scale for all maps of this page; a frame without colour "
    "is not quantized. A cell is a kind of linear layer in one layer of the decoder, all its experts "
    "together; the embedding and the head, which are in no layer, are bars as wide as the map."
)


def assignments(group: Group, domain: Domain | None = None) -> list[Panel]:
    """The maps of a group's mixes, the best first; nothing where all its artifacts are uniform.

    Args:
        group: The trials.
        domain: Bits per weight at the ends of the colours; by default those of this group.
    """
    known = [row for row in group.quantized if row.record.tensors is not None]
    ranked = sorted(known, key=PPL_RATIO.get)
    ordered = {row.key: row for row in (*front(known)[::-1], *ranked)}.values()
    found = [(row, _assigned(row)) for row in ordered]
    mixes = [Map(row.label, assigned) for row, assigned in found if assigned.is_mixed]
    if not mixes:
        return []
    domain = domain or bits_domain([one.assigned for one in mixes])
    uniform = len(found) - len(mixes)
    first, rest = mixes[:_SHOWN], mixes[_SHOWN : _SHOWN + _FOLDED]
    panels = [
        Panel(
            id="assignment",
            title="Bits by layer",
            note=f"{_NOTE}{_of_uniform(uniform)}",
            alt="; ".join(f"{one.label}: {one.assigned}" for one in first),
            spec=spec(first, domain),
            headings=("artifact", "bits per weight of all linear layers", "stored as"),
            lines=[
                [one.label, bits_text(one.assigned.mean_bits or 0.0), str(one.assigned)]
                for one in mixes
            ],
            wide=True,
        )
    ]
    if rest:
        left = len(mixes) - len(first) - len(rest)
        more = f" Of {left} more the table above has a line each." if left else ""
        panels.append(
            Panel(
                id="assignment-more",
                title=f"Bits by layer of {len(rest)} more",
                note=f"On the same scale.{more}",
                alt="; ".join(f"{one.label}: {one.assigned}" for one in rest),
                spec=spec(rest, domain),
                wide=True,
                folded=True,
            )
        )
    return panels


def page_domain(groups: Iterable[Group]) -> Domain | None:
    """The ends of the colours that all maps of a page share; None where there is no map."""
    found = [
        assigned
        for group in groups
        for row in group.quantized
        if row.record.tensors is not None and (assigned := _assigned(row)).is_mixed
    ]
    return bits_domain(found) if found else None


def _assigned(row: Row) -> Assignment:
    assert row.record.tensors is not None
    return assignment_in(row.record.tensors)


def _of_uniform(count: int) -> str:
    if not count:
        return ""
    one = count == 1
    return (
        f" {'One more artifact stores' if one else f'{count} more artifacts store'} all linear "
        f"layers alike and {'has' if one else 'have'} no map."
    )
