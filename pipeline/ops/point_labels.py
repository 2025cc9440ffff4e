"""Labels of prompt points as segment-anything's prompt encoder defines them."""

FOREGROUND, BACKGROUND = 1, 0
"""Positive and negative clicks."""
PADDING = -1
"""Not a point: fills up prompts that have no box."""
UPPER_LEFT, LOWER_RIGHT = 2, 3
BOX_CORNERS = (UPPER_LEFT, LOWER_RIGHT)
"""A box is two points, its corners."""
LABELS = (PADDING, BACKGROUND, FOREGROUND, UPPER_LEFT, LOWER_RIGHT)
"""All labels, in ascending order."""
