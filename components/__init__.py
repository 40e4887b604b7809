"""Building blocks that papers share: no Lightning, no Hydra, no paths, nothing of the project."""
