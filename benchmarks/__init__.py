"""Measurements: accuracy on simulated series, speed and memory."""
