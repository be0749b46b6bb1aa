"""The curvature of a stage: EK-FAC's covariances, eigenbases and eigenvalues Λ, and the exact Gauss-Newton product."""
