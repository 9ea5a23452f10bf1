"""Generalisation under reward shift and clipped KL: bounds, thresholds, budgets. numpy and scipy, no torch."""
