"""How numbers are printed in tables."""


def format_number(value: float | None) -> str:
    """Two decimals for percentages and the like, four for small numbers, none for counts, a dash for nothing."""
    if value is None:
        return "-"
    if abs(value) >= 1000 and float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"
