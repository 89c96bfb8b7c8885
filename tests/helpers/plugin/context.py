from sdcore.contexts import ContextInputs, context


@context("critique")
def hint(inputs: ContextInputs) -> str:
    """The corrected trace, announced.

    Expected: as step_aligned.
    """
    return f"A correct solution: {inputs.critique.corrected}"
