"""Notes on palettes that conversion does not keep as one would expect."""

from __future__ import annotations

from torch import nn

from mlopt.palette.value.palettized import Palettized
from mlopt.torch.gates import arranged
from mlopt.torch.modules import ModelParameter, Owner
from mlopt.torch.plain_forms import has_plain_form


def conversion_notes(parameter: ModelParameter, palettized: Palettized) -> list[str]:
    """Return notes, without repetition, for the row of a parameter with this palette."""
    notes = [_note(owner) for owner in parameter.adapted]
    if parameter.gates is not None:
        notes.append(_note_of_gates(parameter, palettized, parameter.gates))
    return list(dict.fromkeys(note for note in notes if note is not None))


def _note(owner: Owner) -> str | None:
    module, kind = owner.module, owner.kind
    if isinstance(module, nn.RNN) and module.bidirectional:
        return f"coremltools does not convert a bidirectional {kind}"
    if isinstance(module, nn.LSTM) and module.proj_size:
        return f"coremltools does not convert {kind} with proj_size"
    if has_plain_form(module):
        return f"coremltools does not convert {kind}; mlopt.torch.convert does"
    return None


def _note_of_gates(parameter: ModelParameter, palettized: Palettized, gates: int) -> str:
    kind = next(o.kind for o in parameter.adapted if o.adapter and o.adapter.gates == gates)
    if arranged(palettized, gates) is None:
        return (
            f"Core ML gets it dense: its tables or vectors do not fit the {gates} gates of {kind}"
        )
    return (
        f"coremltools.convert makes it dense, since it splits the {gates} gates of {kind}; "
        "mlopt.torch.convert keeps the palette"
    )
