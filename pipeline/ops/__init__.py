"""Pure functions of arrays (coordinates, masks, clicks, metrics), and capabilities of the processor."""
