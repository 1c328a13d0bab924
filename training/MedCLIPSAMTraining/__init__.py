"""Training for MedCLIPSAM: losses, CLIP fine-tuning, alignment of the lite engine, weak supervision.

It stands on ``MedCLIPSAMLib`` and is never imported by it; run its parts as ``python -m MedCLIPSAMTraining.<part>``.
"""
