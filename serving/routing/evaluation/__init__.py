"""How good the router is: task detection, and complexity against cost."""
