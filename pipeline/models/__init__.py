"""Models: teachers and students, each a complete SAM with its own image encoder."""

from pipeline.models.students import STUDENTS, TEACHERS, build

__all__ = ["STUDENTS", "TEACHERS", "build"]
