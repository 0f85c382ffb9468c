"""Answers of a program with weights replaced, and how far they are from those of the original."""
