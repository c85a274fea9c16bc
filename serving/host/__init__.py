"""What the machine offers: its processor's name, its terminal, safe file writes, signals."""
