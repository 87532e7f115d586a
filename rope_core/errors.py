"""The one error type users meet: what was found, what was expected, what to do."""


class RopeWorksError(ValueError):
    """Bad input to a node or to the Python API. The model it was meant for is unchanged."""
