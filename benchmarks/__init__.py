"""Each measured against the alternative that a user would pick, printed as a ratio."""
