"""The palettized weight as a value: the request, the result, and its packing."""
