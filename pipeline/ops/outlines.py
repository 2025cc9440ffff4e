"""Outlines of binary masks."""

import cv2
import numpy as np
from jaxtyping import Bool, Float


def polygons(mask: Bool[np.ndarray, "h w"]) -> list[Float[np.ndarray, "n 2"]]:
    """Outlines ``(N, 2)`` of a mask's connected parts, in pixels, through the centres of the outermost pixels.

    Parts without an area in this sense, such as a single pixel, give the corners of their bounding box.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = []
    for contour in reversed(contours):  # from the top down
        if cv2.contourArea(contour) > 0:
            outlines.append(contour[:, 0].astype(np.float64) + 0.5)
        else:
            x, y, width, height = cv2.boundingRect(contour)
            outlines.append(np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float64))
    return outlines
