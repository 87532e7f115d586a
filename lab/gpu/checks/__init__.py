"""A module for each check. `rows(place)` gives pairs of a row's name and a function that measures it and returns its figures.

A row with "ok" false, or one that raised, makes its check failed. INFERENCE = False: not under inference mode. NEEDS: packages.
"""
