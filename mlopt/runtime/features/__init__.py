"""Features: the inputs and outputs that a model describes, and conversion of their values."""
