"""Plans: which form each weight gets, so that a package is small and its answers stay."""
