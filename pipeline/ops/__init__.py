"""Pure functions of arrays (coordinates, masks, clicks, metrics), and what the processor at hand computes exactly."""
