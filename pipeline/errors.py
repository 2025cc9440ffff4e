"""The two refusals of the pipeline, as opposed to faults of the program."""


class InputError(ValueError):
    """Something handed to the pipeline is wrong; its text says what, where, and how to mend it.

    The command line prints the text as one line and exits with 2. Everything else that is raised is a fault of
    the program and keeps its traceback.
    """


class GateError(Exception):
    """A model does not meet the rules for becoming champion; its text has each rule that failed and by how much.

    The command line prints the text and exits with 1.
    """
