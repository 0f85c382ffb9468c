"""An ML program as data: package, weight file, functions, operations, constants, opsets."""
