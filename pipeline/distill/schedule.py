"""When each layer counts in layer-wise distillation.

Source: SAM-Lightening (arXiv 2403.09195): the first layer has full weight from the start, later ones gain it by a
piecewise function of time, focus layers are exempt. The function itself is not published; this one is ours.
"""


def layer_weights(step: int, *, layers: int, focus: int, ramp_steps: int) -> tuple[float, ...]:
    """The weight of each layer at a step, from the image to the embedding.

    Layer l of L waits until step ``(l - 1) / L`` of ``ramp_steps``, gains weight linearly until layer l + 1 begins, and
    counts in full from then on. The first layer and the last ``focus`` layers count in full from the start.

    Args:
        step: From 0.
        layers: L.
        focus: How many of the last layers are exempt.
        ramp_steps: Steps after which all count in full.
    """
    wait = ramp_steps / layers
    ramp = [1.0 if wait == 0 else min(1.0, max(0.0, step / wait - place)) for place in range(layers)]
    return tuple(1.0 if place == 0 or place >= layers - focus else ramp[place] for place in range(layers))
