"""The inputs and outputs that a model describes, and their values as tensors and back."""
