"""``python -m mlopt.runtime``: the operations that can be run, opset by opset."""

from __future__ import annotations

from mlopt.runtime.coverage import coverage_table

if __name__ == "__main__":
    print(coverage_table())
