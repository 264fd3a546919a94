"""Every method of the registry for one budget: their runs, what came of each, one page."""
