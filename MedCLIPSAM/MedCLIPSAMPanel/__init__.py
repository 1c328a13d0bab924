"""The parts of the MedCLIPSAM panel: each file is one section, or one control that is more than a widget."""
