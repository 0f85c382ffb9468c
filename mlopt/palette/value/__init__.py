"""The palettized weight as a value: what was asked, what came out, how it is packed."""
