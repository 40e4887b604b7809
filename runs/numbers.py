"""How numbers are printed in tables."""


def format_number(value: float | None) -> str:
    """Two decimals for percentages and the like, four for small numbers, a dash for none."""
    return "-" if value is None else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"
