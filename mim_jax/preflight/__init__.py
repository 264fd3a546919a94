"""A run before it is run: its true step, compiled for devices that need not be there."""
