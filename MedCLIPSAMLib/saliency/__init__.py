"""Saliency methods with one signature: (model, image, text embedding, seed) -> (H, W) map in [0, 1]."""
