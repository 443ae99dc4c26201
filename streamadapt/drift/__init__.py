"""Drift: signals, detectors, monitors and reactions."""
