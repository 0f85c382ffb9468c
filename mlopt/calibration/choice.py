"""The choice among the readers of one weight: which of their moments are added."""

from __future__ import annotations

from collections.abc import Sequence

from mlopt.calibration.readers import Reader


def chosen_readers(
    name: str, readers: Sequence[tuple[str, Reader]], reasons: Sequence[str]
) -> tuple[list[int], str | None]:
    """Return the numbers of the readers whose moments are added, and a remark about the others.

    Those that have second moments come first, if any do; of these the ones with the arrangement of
    the first.

    Parameters
    ----------
    name
        The weight's.
    readers
        One or more, with their titles.
    reasons
        Why further ones have no statistics, each beginning with the title.
    """
    multiplying = [i for i, (_, reader) in enumerate(readers) if not reader.is_lookup]
    multiplying = multiplying or list(range(len(readers)))
    first = readers[multiplying[0]][1].arrangement
    chosen = [i for i in multiplying if readers[i][1].arrangement == first]
    others = [title for i, (title, _) in enumerate(readers) if i not in chosen]
    if len(chosen) == 1 and not others and not reasons:
        return chosen, None
    titles = ", ".join(dict.fromkeys(readers[i][0] for i in chosen))
    remark = f"weight {name!r} has the statistics of {titles}"
    if others or reasons:
        left_out = list(dict.fromkeys(others))
        left_out += [reason.split(" reads it as ")[0] for reason in reasons]
        remark += f", not those of {', '.join(left_out)}, which reads it too"
    return chosen, remark
