"""Faults in a run of four processes (see `__main__`)."""
