from decimal import Decimal

from sdcore.grading.notation import numbers


def test_numbers_of_a_text_are_values_without_signs():
    found = numbers("1,200 - .5 = 1200.0, then -12,34 and $1,234,567.50")
    assert found == [Decimal(n) for n in ("1200", "0.5", "1200", "12", "34", "1234567.5")]
    assert numbers("no digits") == []
