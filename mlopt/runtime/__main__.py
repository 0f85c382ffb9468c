"""``python -m mlopt.runtime``: print the table of operations that can be run."""

from __future__ import annotations

from mlopt.runtime.coverage import coverage_table

if __name__ == "__main__":
    print(coverage_table())
