"""Imported once by the server that the workers are forked from: they share what is warm here."""

from sdcore.grading.algebra import warm_up

warm_up()
