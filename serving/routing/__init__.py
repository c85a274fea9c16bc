"""Which way a request goes: narrow task or not, how complex, and what escalates."""
