"""One package for each paper; a paper imports only its own package and the shared components."""
