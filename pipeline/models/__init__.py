"""Models: teachers and students, each a whole SAM around an image encoder of its own."""

from pipeline.models.students import STUDENTS, TEACHERS, build

__all__ = ["STUDENTS", "TEACHERS", "build"]
