"""How far the answers of two models are apart, and which weights are to blame."""
