"""What each shortcut may do, and the evidence for it. `statistics` is pure."""
