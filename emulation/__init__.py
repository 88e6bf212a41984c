"""Stand-ins for hardware and for a cluster; loaded by name, imported by nothing in production."""
