"""The offline flow's first half: a 16-bit checkpoint becomes an INT8 or INT4 artifact."""
