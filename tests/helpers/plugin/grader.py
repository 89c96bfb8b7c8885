from sdcore.grading.graders import grader

print("imported")  # of no concern to who reads the results of a command


@grader
def near(question, reference, response):
    """1 for the reference as the last word, else the share of its characters in the response."""
    print("graded", reference)
    words = response.replace("<", " ").replace(">", " ").split()
    if reference in words:
        return 1, {"words": len(words)}
    return sum(char in response for char in reference) / (2 * len(reference)), {"words": len(words)}
