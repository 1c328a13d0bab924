"""Runs the command line: ``python -m MedCLIPSAMLib``."""

from MedCLIPSAMLib.cli import main

main()
