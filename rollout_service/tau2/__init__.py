"""The seam to τ²-bench: the only package that imports `tau2`, and within it only `compat` knows which one it is."""
