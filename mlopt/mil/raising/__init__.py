"""Raising a program to a newer opset with the same meaning."""
