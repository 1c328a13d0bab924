"""Promptable segmenters of the SAM family behind one interface."""
