"""Simulated images with known truth: each module draws one modality from simple physics, with numpy and scipy alone."""
