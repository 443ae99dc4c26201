"""Realistic labels: a label budget, late positives, missing and bad labels."""
