"""Adapters that execute plans on a model. They know no method."""
