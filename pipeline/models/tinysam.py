"""TinySAM: TinyViT as SAM's image encoder.

Source: Shu et al. 2023, "TinySAM: Pushing the Envelope for Efficient Segment Anything Model" (arXiv 2312.13789).
Checkpoints of TinySAM and of MobileSAM, which has the same encoder, load strictly and give the published outputs. The
published decoder drops segment-anything's single-mask output; this one keeps it, as everywhere in this project. The
nano variant is this project's own: the same code with smaller sizes, for the demo and for tests.
"""

from pipeline.models.nano import assemble_nano
from pipeline.models.sam import Sam, assemble
from pipeline.models.tiny_vit import Stage, TinyViT

IMAGENET_CLASSES = 1000


def tinysam() -> Sam:
    """10.1 M parameters, 6.07 M of them the encoder's, which costs 38.8 GMAC; 1024 pixels in."""
    stages = (
        Stage(64, 2),
        Stage(128, 2, heads=4, window=7),
        Stage(160, 6, heads=5, window=14, halves=False),
        Stage(320, 2, heads=10, window=7),
    )
    encoder = TinyViT(stages, classes=IMAGENET_CLASSES)
    return assemble(encoder, image_size=1024, input_size=1024, embedding_size=64)


def mobile_sam() -> Sam:
    """MobileSAM (Zhang et al. 2023, arXiv 2306.14289): TinySAM's architecture with other weights."""
    return tinysam()


def tinysam_nano(teacher: str = "bundled") -> Sam:
    """6.1 M parameters, 2.06 M of them the encoder's, which costs 0.66 GMAC; 256 pixels in and in the prompt frame.

    Windows of 16 cover the whole 16 x 16 embedding; the windows of 7 before it exercise the published padding.

    Args:
        teacher: The bundled teacher whose frame and prompt encoder it takes. `bundled_v2` has twice the side.
    """
    stages = (
        Stage(16, 1),
        Stage(48, 1, heads=2, window=7),
        Stage(128, 2, heads=4, window=16, halves=False),
        Stage(192, 2, heads=6, window=16),
    )
    return assemble_nano(teacher, lambda frame: TinyViT(stages))
