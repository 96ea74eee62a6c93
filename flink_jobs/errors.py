"""Errors that a person can act on: the command line prints their message, without a traceback."""


class EddyError(Exception):
    """Something that the user, not the program, must put right.

    The message says what was expected, what was found, where, and what to do next.
    """
