"""What the benchmark scripts share: measuring, child processes, the rows, output."""
