"""Metrics that papers share, as torchmetrics classes."""
